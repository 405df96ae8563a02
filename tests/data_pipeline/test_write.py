"""Shards as the converter writes them: full blocks, in order, with an index that fits."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.index import load_index
from data_pipeline.records import BLOCK_ROWS, RECORD_FORMATS
from data_pipeline.schema import Column, Hashing
from data_pipeline.write import SplitWriter, check_record_format, write_index
from hm3_tf.errors import ConfigError
from tests.data_pipeline.conftest import COLUMNS, make_rows, read_stored, to_batch

ID = (Column("id", "int64", hashing=Hashing(10)),)


def write(folder, sizes, record_format="packed", shard_rows=2 * BLOCK_ROWS):
    """Writes batches of ascending ids and returns the index of what was written."""
    os.makedirs(folder, exist_ok=True)
    writer = SplitWriter(str(folder), ID, record_format, shard_rows)
    starts = np.cumsum([0, *sizes])
    for start, size in zip(starts, sizes):
        writer.write(to_batch({"id": list(range(start, start + size))}, ID))
    write_index(str(folder), record_format, writer.finish())


@pytest.mark.parametrize("record_format", RECORD_FORMATS)
@pytest.mark.parametrize("sizes", [[5], [1_024], [1_023, 2], [100] * 35, [5_000], [0, 1_500, 0, 900]], ids=str)
def test_rows_are_stored_once_and_in_order(tmp_path, record_format, sizes):
    write(tmp_path, sizes, record_format)
    np.testing.assert_array_equal(read_stored(tmp_path, ID)["id"], np.arange(sum(sizes)))


@pytest.mark.parametrize("record_format", RECORD_FORMATS)
@pytest.mark.parametrize("sizes", [[3_500], [100] * 35, [999, 1, 2_000, 500]], ids=str)
def test_all_blocks_but_the_last_are_full_whatever_the_batches(tmp_path, record_format, sizes):
    write(tmp_path, sizes, record_format)
    index = load_index(str(tmp_path))
    assert index.blocks[:, 3].tolist() == [1_024, 1_024, 1_024, 428]
    assert index.blocks[:, 0].tolist() == [0, 0, 1, 1]


def test_a_packed_block_is_one_record_and_a_row_block_one_a_row(tmp_path):
    for record_format, records in (("packed", [1, 1]), ("row", [1_024, 76])):
        write(tmp_path / record_format, [1_100], record_format)
        assert load_index(str(tmp_path / record_format)).blocks[:, 2].tolist() == records


def test_a_shard_ends_with_the_block_that_fills_it(tmp_path):
    write(tmp_path, [5_000], shard_rows=1_500)
    names = sorted(name for name in os.listdir(tmp_path) if name != "index.json")
    assert names == ["part-00000.tfrecord", "part-00001.tfrecord", "part-00002.tfrecord"]
    index = load_index(str(tmp_path))
    assert [int(index.blocks[index.blocks[:, 0] == shard, 3].sum()) for shard in range(3)] == [2_048, 2_048, 904]


def test_the_index_names_format_shards_and_bytes(tmp_path):
    write(tmp_path, [3_000], "row")
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["record_format"] == "row"
    assert [shard["file"] for shard in index["shards"]] == ["part-00000.tfrecord", "part-00001.tfrecord"]
    for shard in index["shards"]:
        assert shard["bytes"] == os.path.getsize(tmp_path / shard["file"])


def test_a_split_without_rows_has_an_index_and_no_shard(tmp_path):
    write(tmp_path, [0])
    assert os.listdir(tmp_path) == ["index.json"]
    assert json.loads((tmp_path / "index.json").read_text())["shards"] == []


def test_all_columns_of_a_log_are_stored(tmp_path):
    rows = make_rows(1_100)
    writer = SplitWriter(str(tmp_path), COLUMNS)
    writer.write(to_batch(rows))
    write_index(str(tmp_path), "packed", writer.finish())
    stored = read_stored(tmp_path, COLUMNS)
    np.testing.assert_array_equal(stored["row_id"], rows["row_id"])
    np.testing.assert_array_equal(stored["vector"], rows["vector"])
    assert stored["brand"].tolist() == [brand or b"" for brand in rows["brand"]]
    lengths = (stored["tags"] != tf.int64.min).sum(axis=1)
    np.testing.assert_array_equal(lengths, [min(3, len(tags or [])) for tags in rows["tags"]])


def test_an_unknown_record_format_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="--record_format: expected one of .*, got 'rows'; did you mean 'row'"):
        check_record_format("rows")


@pytest.mark.parametrize("record_format", RECORD_FORMATS)
def test_each_day_has_shards_of_its_own_in_the_order_of_the_days(tmp_path, record_format):
    writer = SplitWriter(str(tmp_path), ID, record_format, shard_rows=BLOCK_ROWS)
    days = np.array(["2022-05-02", "2022-04-30", "2022-05-01"], "datetime64[D]")
    for start in (0, 2_000, 4_000):
        rows = np.arange(start, start + 2_000)
        writer.write(to_batch({"id": rows.tolist()}, ID), days[rows % 3])
    write_index(str(tmp_path), record_format, writer.finish())
    index = load_index(str(tmp_path))
    names = [file.rsplit("/", 1)[1] for file in index.files]
    assert names == [
        f"{day}-part-0000{i}.tfrecord" for day in ("2022-04-30", "2022-05-01", "2022-05-02") for i in range(2)
    ]
    expected = [row for day in (1, 2, 0) for row in range(day, 6_000, 3)]
    assert read_stored(tmp_path, ID)["id"].tolist() == expected
