"""Conversion on Ray: the rows, splits, statistics and errors of the conversion in one process."""

import functools
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from data_pipeline.convert import SPLITS, convert
from data_pipeline.ray_convert import convert_on_ray
from data_pipeline.sources import open_source
from data_pipeline.sources.base import TableFiles, TableSource
from data_pipeline.split_rules import parse_split
from hm3_tf.errors import DataError
from hm3_tf.ray_session import connected
from tests.data_pipeline.conftest import COLUMNS, SCHEMA, make_rows, read_stored, to_batch


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of the file."""
    with connected(None, 2) as ray:
        yield ray


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of 2,500 rows in four files, one of them empty, with labels that break the hierarchy."""
    folder = tmp_path_factory.mktemp("log")
    batch = to_batch(make_rows(2_500))
    for i, (start, stop) in enumerate([(0, 1_100), (1_100, 1_101), (1_101, 1_101), (1_101, 2_500)]):
        pa.parquet.write_table(pa.Table.from_batches([batch.slice(start, stop - start)]), folder / f"{i}.parquet")
    return TableSource(TableFiles(str(folder), "parquet"), SCHEMA)


def convert_by_both(source, folder, split, **options):
    """Returns the data folders that one process and Ray write."""
    rule = functools.partial(parse_split, split, "date", 3)
    convert(source, str(folder / "local"), rule(), **options)
    convert_on_ray(source, str(folder / "ray"), rule, **options)
    return folder / "local", folder / "ray"


def assert_same_log(local, ray, columns):
    assert (ray / "schema.json").read_text() == (local / "schema.json").read_text()
    assert_near(*(json.loads((folder / "statistics.json").read_text()) for folder in (ray, local)))
    for split in SPLITS:
        rows = [read_stored(folder / split, columns) for folder in (ray, local)]
        for column in columns:
            np.testing.assert_array_equal(rows[0][column.name], rows[1][column.name], err_msg=f"{split} {column.name}")


def assert_near(found, expected):
    """Checks that two JSON values are the same up to the rounding of numbers."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_near(found[name], expected[name])
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("nesting, record_format", [("coerce", "packed"), ("drop", "row")])
def test_fractions_give_each_row_the_split_that_one_process_gives_it(log, tmp_path, nesting, record_format):
    folders = convert_by_both(log, tmp_path, "fraction:.6,.2,.2", nesting=nesting, record_format=record_format)
    assert_same_log(*folders, COLUMNS)
    violations = json.loads((folders[1] / "statistics.json").read_text())["train"]["violations"]
    assert violations["purchase without click"] > 0
    shards = {name[:10] for name in os.listdir(folders[1] / "train") if name.startswith("part")}
    assert shards >= {"part-00000", "part-00003"}  # each file by a task of its own


def test_columns_of_csv_files_have_the_types_of_the_whole_log_and_dates_split_it(tmp_path):
    days = ["2022-05-01", "2022-05-02", "2022-05-03"] * 5
    for name, ids in (("a", [f"{i}x" for i in range(15)]), ("b", list(range(15)))):  # text in a, so text in b
        table = pa.table({"item": ids, "price": range(15), "date": days, "click": [1, 0, 0] * 5})
        pa.csv.write_csv(table, tmp_path / f"{name}.csv")
    source = open_source("csv", str(tmp_path), behaviors="click", ignored="date")
    folders = convert_by_both(source, tmp_path, "date:2022-05-02,2022-05-03")
    assert_same_log(*folders, source.schema.columns)


def test_what_is_wrong_in_a_file_is_said_as_by_one_process_and_nothing_is_left(log, tmp_path):
    with pytest.raises(DataError) as local:
        convert(log, str(tmp_path / "local"), parse_split("fraction:1,0,0", "", 0), nesting="error")
    with pytest.raises(DataError) as on_ray:
        convert_on_ray(
            log, str(tmp_path / "ray"), lambda row: parse_split("fraction:1,0,0", "", 0, row), nesting="error"
        )
    assert str(on_ray.value) == str(local.value)
    assert not os.listdir(tmp_path)
