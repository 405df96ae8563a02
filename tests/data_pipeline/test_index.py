"""The index of a split: what the converter wrote is what a scan finds; damage is named by file and offset."""

import gzip
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.index import find_corruption, load_index, scan
from data_pipeline.records import RECORD_FORMATS
from data_pipeline.schema import Column, Hashing
from data_pipeline.write import SplitWriter
from data_pipeline.write import write_index as write_split_index
from hm3_tf.errors import DataError
from tests.data_pipeline.conftest import example, flip_byte, make_rows, to_batch, write_index, write_records

ID = (Column("id", "int64", hashing=Hashing(10)),)
ROWS = 3_500


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{record format: folder} of two shards of ids with their index; not to be changed."""
    folders = {}
    for record_format in RECORD_FORMATS:
        folders[record_format] = tmp_path_factory.mktemp(record_format)
        writer = SplitWriter(str(folders[record_format]), ID, record_format, shard_rows=2_048)
        writer.write(to_batch({"id": list(range(ROWS))}, ID))
        write_split_index(str(folders[record_format]), record_format, writer.finish())
    return folders


@pytest.fixture(params=RECORD_FORMATS)
def split(request, written, tmp_path):
    """A split folder with its index, to be changed."""
    return shutil.copytree(written[request.param], tmp_path / "split")


def without_index(folder):
    os.remove(folder / "index.json")
    return folder


def error_of(folder):
    with pytest.raises(DataError) as caught:
        load_index(str(folder))
    return str(caught.value)


def offset_in(message):
    return int(re.search(r"byte offset (\d+)", message).group(1))


def test_the_written_index_is_what_a_scan_of_the_shards_finds(split):
    loaded = load_index(str(split))
    scanned = load_index(str(without_index(split)))
    assert loaded.rows == scanned.rows == ROWS
    assert loaded.record_format == scanned.record_format
    assert loaded.files == scanned.files
    assert loaded.file_bytes == scanned.file_bytes
    np.testing.assert_array_equal(loaded.blocks, scanned.blocks)


@pytest.mark.parametrize("record_format", RECORD_FORMATS)
def test_a_scan_finds_the_records_that_were_counted_by_hand(tmp_path, record_format):
    expected = write_index(str(tmp_path / "log"), make_rows(200), files=3, record_format=record_format)
    found = scan(expected.files)
    assert found.rows == 200
    assert found.file_bytes == expected.file_bytes
    if record_format == "packed":
        np.testing.assert_array_equal(found.blocks, expected.blocks)
    else:  # fewer than 1,024 rows a shard: one block each
        per_shard = [int(expected.blocks[expected.blocks[:, 0] == shard, 3].sum()) for shard in range(3)]
        assert found.blocks.tolist() == [[shard, 0, rows, rows] for shard, rows in enumerate(per_shard)]


def test_a_block_starts_where_the_record_of_its_first_row_does(split):
    index, first_row = load_index(str(split)), 0
    for shard, offset, _, rows in index.blocks.tolist():
        with open(index.files[shard], "rb") as file:
            file.seek(offset)
            size = int.from_bytes(file.read(8), "little")
            file.seek(offset + 12)
            ids = tf.train.Example.FromString(file.read(size)).features.feature["id"].int64_list.value
        assert ids[0] == first_row
        first_row += rows
    assert first_row == ROWS


def test_shards_are_in_the_order_of_their_names(tmp_path):
    for name, value in (("b", 2), ("a", 1), ("c", 3)):
        write_records(str(tmp_path / f"{name}.tfrecord-of-3"), [example(id=value)] * value)
    index = load_index(str(tmp_path))
    assert [os.path.basename(file)[0] for file in index.files] == ["a", "b", "c"]
    assert index.blocks[:, 3].tolist() == [1, 2, 3]


def test_shards_without_records_have_no_block(tmp_path):
    for name, rows in (("a", 0), ("b", 2), ("c", 0)):
        write_records(str(tmp_path / f"{name}.tfrecord"), [example(id=1)] * rows)
    assert load_index(str(tmp_path)).blocks.tolist() == [[1, 0, 2, 2]]


def test_a_shard_is_an_index_of_its_own(split):
    whole = load_index(str(split))
    shards = whole.shards()
    assert [shard.rows for shard in shards] == [2_048, 1_452]
    for i, shard in enumerate(shards):
        assert (shard.files, shard.file_bytes) == (whole.files[i : i + 1], whole.file_bytes[i : i + 1])
        np.testing.assert_array_equal(shard.blocks, scan(shard.files).blocks)
    assert len({shard.fingerprint for shard in (whole, *shards)}) == 3


def test_a_shard_without_records_is_one_without_rows(tmp_path):
    for name, rows in (("a", 0), ("b", 2), ("c", 0), ("d", 1)):
        write_records(str(tmp_path / f"{name}.tfrecord"), [example(id=1)] * rows)
    shards = load_index(str(tmp_path)).shards()
    assert [os.path.basename(shard.files[0])[0] for shard in shards] == ["a", "b", "c", "d"]
    assert [shard.blocks.tolist() for shard in shards] == [[], [[0, 0, 2, 2]], [], [[0, 0, 1, 1]]]


def test_a_corrupt_record_is_named_by_file_and_offset(split):
    blocks = load_index(str(split)).blocks
    shard, start, _, _ = blocks[1]
    file = split / f"part-{shard:05d}.tfrecord"
    size = int(np.frombuffer(file.read_bytes()[start : start + 8], np.int64)[0])  # length of the block's first record
    flip_byte(file, start + 12 + size // 2)
    message = error_of(without_index(split))
    assert message.startswith(f"{file}: ")
    assert "corrupt" in message
    assert start <= offset_in(message) <= start + 12 + size
    assert "convert the log again" in message


def test_a_corrupt_length_is_named_by_file_and_offset(split):
    file = split / "part-00001.tfrecord"
    flip_byte(file, 3)
    message = error_of(without_index(split))
    assert message.startswith(f"{file}: ")
    assert offset_in(message) == 0


def test_a_truncated_shard_is_named_by_file_and_offset(split):
    file = split / "part-00000.tfrecord"
    whole = file.stat().st_size
    os.truncate(file, whole - 7)
    message = error_of(without_index(split))
    assert message.startswith(f"{file}: ")
    assert "cut-off" in message
    assert 0 < offset_in(message) < whole


def test_a_truncated_shard_with_an_index_names_expected_and_found_bytes(split):
    file = split / "part-00000.tfrecord"
    whole = file.stat().st_size
    os.truncate(file, whole - 7)
    message = error_of(split)
    assert message.startswith(f"{file}: expected the {whole} bytes that index.json names, found {whole - 7} bytes")
    assert offset_in(message) == whole - 7


def test_a_shard_that_grew_names_expected_and_found_bytes(split):
    file = split / "part-00001.tfrecord"
    whole = file.stat().st_size
    with open(file, "ab") as appended:
        appended.write(b"more")
    assert f"expected the {whole} bytes that index.json names, found {whole + 4} bytes" in error_of(split)


def test_a_shard_that_is_gone_is_named(split):
    os.remove(split / "part-00001.tfrecord")
    message = error_of(split)
    assert message.startswith(f"{split}/part-00001.tfrecord: ")
    assert "found no file" in message


def test_corruption_is_found_after_the_index_was_loaded(split):
    index = load_index(str(split))
    assert find_corruption(index) is None
    flip_byte(index.files[1], 40)
    assert str(find_corruption(index)).startswith(f"{index.files[1]}: ")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"record_format": "row"}', '{"shards": [{}], "record_format": "row"}']
)
def test_an_index_that_is_damaged_is_named(split, text):
    (split / "index.json").write_text(text)
    message = error_of(split)
    assert message.startswith(f"{split}/index.json: ")
    assert "convert the log again" in message


def test_a_folder_without_shards_is_named(tmp_path):
    message = error_of(tmp_path / "train")
    assert message.startswith(f"{tmp_path}/train: expected *.tfrecord shards, found none")


@pytest.mark.parametrize("indexed", [True, False])
def test_a_split_without_rows_is_refused(tmp_path, indexed):
    if indexed:
        (tmp_path / "index.json").write_text(json.dumps({"record_format": "packed", "shards": []}))
    else:
        write_records(str(tmp_path / "a.tfrecord"), [])
    assert error_of(tmp_path).startswith(f"{tmp_path}: expected impressions, found an empty split")


def test_a_compressed_shard_is_refused(tmp_path):
    file = write_records(str(tmp_path / "a.tfrecord"), [example(id=1)])
    with open(file, "rb") as plain, gzip.open(f"{file}.gz", "wb") as packed:
        packed.write(plain.read())
    os.remove(file)
    message = error_of(tmp_path)
    assert message.startswith(f"{file}.gz: expected uncompressed TFRecord")
    assert "decompress it" in message


def test_records_that_are_no_examples_are_named_by_file(tmp_path):
    file = write_records(str(tmp_path / "a.tfrecord"), [b"\xff\xff no Example"])
    assert error_of(tmp_path).startswith(f"{file}: ")


def test_row_records_among_packed_ones_are_named_by_file(written, tmp_path):
    folder = shutil.copytree(written["packed"], tmp_path / "mixed")
    file = write_records(str(folder / "part-00002.tfrecord"), [example(id=1)])
    assert error_of(without_index(folder)).startswith(f"{file}: ")


def dated(tmp_path, days):
    """Returns the index of a folder with two shards of a day, of 100 and 7 rows in blocks of 50, in the order given."""
    for i, day in enumerate(days):
        rows = [list(range(100)), list(range(7))][days[:i].count(day)]
        write_index(tmp_path / str(i), {"id": rows}, columns=ID, block_rows=50)
        os.rename(tmp_path / str(i) / "0.tfrecord", tmp_path / f"log-{day}-{i}.tfrecord")
    return load_index(str(tmp_path))


def test_the_parts_of_days_are_in_order_and_have_every_block_once(tmp_path):
    index = dated(tmp_path, ["2022-05-02", "2021-12-31", "2022-05-02", "2022-01-10"])
    parts = index.by_day()
    assert list(parts) == ["2021-12-31", "2022-01-10", "2022-05-02"]
    assert [part.blocks[:, 3].tolist() for part in parts.values()] == [[50, 50], [50, 50], [50, 50, 7]]
    found = sorted(tuple(block) for part in parts.values() for block in part.blocks)
    assert found == sorted(tuple(block) for block in index.blocks)
    for day, part in parts.items():
        assert all(day in part.files[shard] for shard in part.blocks[:, 0])


def test_a_shard_without_a_date_is_named_where_days_are_asked_for(tmp_path):
    index = dated(tmp_path, ["2022-05-02", "20220503"])
    with pytest.raises(DataError, match=r"log-20220503-1.tfrecord: expected a date in the name of each shard, as 2022"):
        index.by_day()
