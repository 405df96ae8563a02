"""What of damaged shards is read: the sound records, each right, the others named, counted and bounded."""

import collections
import logging
import os
import shutil

import numpy as np
import pytest

from benchmarks import fuzz
from data_pipeline.bad_records import BadRecords
from data_pipeline.folder import DataFolder
from data_pipeline.index import load_index
from data_pipeline.records import RECORD_FORMATS
from data_pipeline.salvage import sound_index
from data_pipeline.schema import Column, Hashing, Level, Schema, to_json
from data_pipeline.write import SplitWriter, write_index
from hm3_tf.errors import DataError
from tests.data_pipeline.conftest import example, flip_byte, to_batch, write_records

SCHEMA = Schema(
    (Column("id", "int64", hashing=Hashing(10)), Column("click", "int64", "behavior")),
    (Level("click", ("click",), gate=True),),
)
ROWS = 3_500


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{record format: folder} of two shards with their index, of 2,048 and 1,452 rows; not to be changed."""
    folders = {}
    for record_format in RECORD_FORMATS:
        folders[record_format] = tmp_path_factory.mktemp(record_format)
        writer = SplitWriter(str(folders[record_format]), SCHEMA.columns, record_format, shard_rows=2_048)
        writer.write(to_batch({"id": list(range(ROWS)), "click": [0] * ROWS}, SCHEMA.columns))
        write_index(str(folders[record_format]), record_format, writer.finish())
    return folders


@pytest.fixture(params=RECORD_FORMATS)
def split(request, written, tmp_path):
    """A split folder with its index, to be changed."""
    return shutil.copytree(written[request.param], tmp_path / "train")


def salvage(folder, most=5_000):
    bad = BadRecords(most)
    return sound_index(str(folder), SCHEMA, bad), bad


def found(bad):
    return [(os.path.basename(each.file), each.place, each.reason, each.records, each.rows) for each in bad.records]


def test_of_a_sound_split_the_index_is_the_stored_one(split):
    stored = load_index(str(split))
    index, bad = salvage(split)
    assert not len(bad)
    assert index.fingerprint == stored.fingerprint
    np.testing.assert_array_equal(index.blocks, stored.blocks)
    os.remove(split / "index.json")
    assert salvage(split)[0].fingerprint == stored.fingerprint


def test_a_corrupt_record_is_left_out_alone(split):
    stored = load_index(str(split))
    offset = int(stored.blocks[1, 1])
    flip_byte(stored.files[0], offset + 20)
    index, bad = salvage(split)
    rows = 1_024 if stored.record_format == "packed" else 1
    assert found(bad) == [("part-00000.tfrecord", offset, "a corrupt record", 1, rows)]
    assert index.rows == ROWS - rows


def test_after_a_corrupt_length_reading_goes_on_at_the_next_block_of_the_index(split):
    stored = load_index(str(split))
    flip_byte(stored.files[0], 1)
    index, bad = salvage(split)
    records = 1 if stored.record_format == "packed" else 1_024
    assert found(bad) == [("part-00000.tfrecord", 0, "a record with a corrupt length", records, 1_024)]
    assert index.rows == ROWS - 1_024
    os.remove(split / "index.json")
    index, bad = salvage(split)
    assert found(bad) == [("part-00000.tfrecord", 0, "a record with a corrupt length", None, None)]
    assert index.rows == ROWS - 2_048


@pytest.mark.parametrize("cut", [0, 5])
def test_of_a_cut_shard_what_is_before_the_cut_remains(split, cut):
    stored = load_index(str(split))
    offset = int(stored.blocks[1, 1])
    os.truncate(stored.files[0], offset + cut)
    index, bad = salvage(split)
    assert index.rows == ROWS - 1_024 and bad.rows == 1_024
    assert bad.records[0].place == offset
    assert index.file_bytes[0] == offset + cut


def test_a_shard_that_is_gone_is_counted_by_the_index(split):
    os.remove(split / "part-00001.tfrecord")
    index, bad = salvage(split)
    assert (index.rows, bad.rows) == (2_048, 1_452)


def test_a_cut_within_a_length_is_found_without_an_index(split):
    """TensorFlow takes it for the end of the file."""
    offset = int(load_index(str(split)).blocks[1, 1])
    os.truncate(split / "part-00000.tfrecord", offset + 3)
    os.remove(split / "index.json")
    with pytest.raises(DataError, match=f"part-00000.tfrecord: .*cut-off record at byte offset {offset}"):
        load_index(str(split))


def test_an_index_that_is_damaged_is_named_and_not_used(split):
    text = (split / "index.json").read_text()
    (split / "index.json").write_text(text.replace("[[0, ", "[[1, ", 1))
    with pytest.raises(DataError, match="index.json: .*another checksum"):
        load_index(str(split))
    index, bad = salvage(split)
    assert index.rows == ROWS
    assert [(os.path.basename(each.file), each.rows) for each in bad.records] == [("index.json", 0)]


@pytest.mark.parametrize("record", [b"\xff\xff no Example", example(id=[1.5], click=1), example(id=[1, 2], click=1)])
def test_records_without_the_columns_of_the_schema_are_left_out(tmp_path, record):
    records = [example(id=i, click=0) for i in range(40)]
    records[7] = records[30] = record
    write_records(str(tmp_path / "train" / "a.tfrecord"), records)
    index, bad = salvage(tmp_path / "train")
    assert index.rows == 38
    assert [(each.records, each.rows) for each in bad.records] == [(1, 1)] * 2
    assert index.blocks[:, 3].tolist() == [7, 22, 9]


def test_the_bound_ends_it(split):
    for file in sorted(split.glob("*.tfrecord")):
        flip_byte(file, 20)
    with pytest.raises(DataError, match="part-00001.tfrecord: expected at most 1 bad records in all, got 2"):
        salvage(split, most=1)


def test_a_folder_skips_where_it_is_told_to(split, caplog):
    (split.parent / "schema.json").write_text(to_json(SCHEMA))
    flip_byte(split / "part-00000.tfrecord", 20)
    with caplog.at_level(logging.WARNING):
        index = DataFolder.open(str(split.parent), 1_000).split("train")
    assert ROWS - 1_024 <= index.rows < ROWS
    assert "part-00000.tfrecord: byte offset 0: a corrupt record" in caplog.text
    assert DataFolder.open(str(split.parent)).split("train").rows == ROWS


def test_three_hundred_shards_with_random_damage():
    counts, failures = fuzz.run(300, seed=1, a_folder=10)
    assert not failures
    assert counts["flipped"] + counts["cut"] + counts["intact"] == 300
    named = collections.Counter({name: rows for name, rows in counts.items() if name.startswith("rows")})
    assert named.pop("rows written") == named.total() == 300 * fuzz.ROWS
    assert min(counts["flipped"], counts["cut"], counts["rows of bad records"], counts["named by an error"]) > 100
