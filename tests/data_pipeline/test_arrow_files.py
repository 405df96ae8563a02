"""Raw logs on file systems that TensorFlow knows and Arrow does not."""

import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.arrow_files import ArrowFile
from data_pipeline.bad_records import BadRecords
from data_pipeline.sources.base import TableFiles
from hm3_tf.errors import DataError


@pytest.fixture
def folder(monkeypatch):
    """A folder of TensorFlow's file system in memory."""
    monkeypatch.setattr(storage, "open_file_system", lambda path: None)
    return f"ram://{uuid.uuid4()}/log"


def write(path: str, ids: list[int]) -> None:
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with ArrowFile(path, "wb") as file:
        pq.write_table(pa.table({"id": ids}), pa.PythonFile(file, "w"))


def ids(files: TableFiles) -> list[int]:
    return [value for batch in files.batches() for value in batch.rows.column("id").to_pylist()]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("", [3, 2, 1, 4]), ("/*.parquet", [3]), ("/**/b*.parquet", [2, 4]), ("/day=0/a.parquet", [1])],
)
def test_files_are_found_by_folder_pattern_and_name_and_read_in_order(folder, pattern, expected):
    for name, value in {"d/b": 2, "f/g/b": 4, "c": 3, "day=0/a": 1}.items():
        write(f"{folder}/{name}.parquet", [value])
    with tf.io.gfile.GFile(f"{folder}/README", "w") as file:
        file.write("not of the log")
    assert ids(TableFiles(folder + pattern, "parquet")) == expected


def test_csv_is_read_in_parts_and_counted(folder):
    for name in "ab":
        with tf.io.gfile.GFile(f"{folder}/{name}.csv", "w") as file:
            file.write("id\n1\n2\n")
    files = TableFiles(folder, "csv")
    assert files.count_rows() == 4
    assert [batch.file for batch in files.batches()] == [f"{folder}/a.csv", f"{folder}/b.csv"]


def test_a_file_that_is_not_there_or_cut_off_is_named(folder):
    with pytest.raises(DataError, match=f"{folder}/none.parquet: expected parquet files, found none; check the path"):
        TableFiles(f"{folder}/none.parquet", "parquet").dataset()
    with tf.io.gfile.GFile(f"{folder}/cut.parquet", "wb") as file:
        file.write(b"PAR1 and no end")
    with pytest.raises(DataError, match=f"{folder}: expected parquet files, got: .*cut.parquet"):
        TableFiles(folder, "parquet").dataset()


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_server_that_fails_ends_it_with_the_file_also_where_damage_is_skipped(
    folder, monkeypatch, kind, skips, at_once
):
    for name in "ab":
        if kind == "parquet":
            write(f"{folder}/{name}.parquet", [1, 2])
        else:
            with tf.io.gfile.GFile(f"{folder}/{name}.{kind}", "w") as file:
                file.write("id\n1\n2\n" if kind == "csv" else '{"id": 1}\n{"id": 2}\n')

    def fail(*_):
        raise tf.errors.UnavailableError(None, None, "connection reset")

    files, bad = TableFiles(folder, kind, (("id", pa.int64()),)), BadRecords()
    batches = files.batches(bad=bad if skips else None)
    if not at_once:
        assert next(batches).rows.num_rows == 2
    monkeypatch.setattr(tf.io.gfile.GFile, "read", fail)
    with pytest.raises(DataError, match=f"{folder}/[ab].{kind}: expected .*connection reset"):
        next(batches)
    assert not bad.records
