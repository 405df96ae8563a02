"""Conversion: what comes out is what came in, in its split, or nothing comes out and the row is named."""

import json
import os
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline import schema as schemas
from data_pipeline.folder import DataFolder
from data_pipeline.records import RECORD_FORMATS
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.split_rules import SPLITS, DateColumn
from data_pipeline.statistics import from_json
from hm3_tf.cli import _status
from hm3_tf.errors import ConfigError, DataError, Hm3Error
from tests.data_pipeline.conftest import COLUMNS, FIRST_ID, LEVELS, SCHEMA, convert_rows, make_rows, read_stored

CLICK = Column("click", "int64", "behavior")
CLICK_LEVEL = (Level("click", ("click",), gate=True),)
HASHING = Hashing(10)


def with_columns(*columns):
    """Returns a schema of these columns and a click."""
    return Schema((*columns, CLICK), CLICK_LEVEL)


def convert_column(output, values, column, **options):
    """Converts a log of one column and a click, and returns what was stored of the column."""
    convert_rows(output, {column.name: values, "click": [0] * len(values)}, schema=with_columns(column), **options)
    return read_stored(output / "train", [column])[column.name]


def error_of(output, *tables, kind=DataError, **options):
    """Returns the message of a conversion that must fail, after which nothing may be left."""
    before = sorted(os.listdir(output.parent))
    with pytest.raises(kind) as caught:
        convert_rows(output, *tables, **options)
    assert sorted(os.listdir(output.parent)) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


# Values


@pytest.fixture(scope="module", params=RECORD_FORMATS)
def folder(request, tmp_path_factory):
    """(raw columns of 1,500 rows in two batches, data folder) in each record format."""
    rows = make_rows(1_500)
    output = tmp_path_factory.mktemp(request.param) / "data"
    first, second = ({name: values[part] for name, values in rows.items()} for part in (slice(700), slice(700, None)))
    convert_rows(output, first, second, record_format=request.param)
    return rows, output


def test_every_column_comes_back_in_order_with_missing_values_as_such(folder):
    rows, output = folder
    stored = read_stored(output / "train", COLUMNS)
    for column in COLUMNS:
        missing = {"int64": -(2**63), "string": b"", "float": np.nan}[column.dtype]
        values = [missing if value is None else value for value in rows[column.name]]
        if column.shape == VARIABLE:
            values = [[] if value == missing else value[:3] for value in values]
            values = [value + [missing] * (3 - len(value)) for value in values]
        expected = np.array(values, {"int64": np.int64, "string": object, "float": np.float32}[column.dtype])
        np.testing.assert_array_equal(stored[column.name], expected, err_msg=column.name)


def test_a_data_folder_has_schema_statistics_and_a_folder_a_split(folder):
    _, output = folder
    assert sorted(os.listdir(output)) == ["schema.json", "statistics.json", "test", "train", "validation"]
    assert schemas.from_json((output / "schema.json").read_text()) == SCHEMA


def test_statistics_of_the_file_are_those_of_the_rows(folder):
    rows, output = folder
    text = (output / "statistics.json").read_text()
    statistics = from_json(text, [level.name for level in LEVELS], "statistics.json")
    assert statistics["train"].rows == json.loads(text)["train"]["rows"] == 1_500
    assert (statistics["validation"].rows, statistics["test"].rows) == (0, 0)
    assert statistics["train"].rates()["click"] == np.mean(rows["click"])
    price = np.array([value for value in rows["price"] if value is not None])
    assert statistics["train"].columns["price"]["missing"] == 1_500 - len(price)
    assert statistics["train"].columns["price"]["mean"] == [pytest.approx(price.mean())]
    assert statistics["train"].columns["vector"]["mean"] == [pytest.approx(749.5), pytest.approx(0.5)]
    tags = [tag for row in rows["tags"] for tag in row or []]
    assert statistics["train"].columns["tags"]["count"] == len(tags)
    assert statistics["train"].columns["tags"]["cardinality"] == pytest.approx(len(set(tags)), rel=0.02)


def test_both_record_formats_hold_the_same_rows(tmp_path):
    stored = []
    for record_format in RECORD_FORMATS:
        convert_rows(
            tmp_path / record_format, make_rows(1_100), split="fraction:.5,.25,.25", record_format=record_format
        )
        stored.append(
            [read_stored(tmp_path / record_format / split, COLUMNS) for split in ("train", "validation", "test")]
        )
    for packed, by_row in zip(*stored):
        for name, values in packed.items():
            np.testing.assert_array_equal(values, by_row[name], err_msg=name)


@pytest.mark.parametrize(
    "values, column, expected",
    [
        (pa.array([7, None, 2**53 + 1], pa.int64()), Column("x", "int64", hashing=HASHING), [7, -(2**63), 2**53 + 1]),
        (pa.array([7, None, -3], pa.int16()), Column("x", "int64", hashing=HASHING), [7, -(2**63), -3]),
        (pa.array([True, None, False]), Column("x", "int64", hashing=HASHING), [1, -(2**63), 0]),
        (pa.array([7.0, None, 3.0]), Column("x", "int64", hashing=HASHING), [7, -(2**63), 3]),
        (pa.array(["7", None, "-3"]), Column("x", "int64", hashing=HASHING), [7, -(2**63), -3]),
        (pa.array([None, None, None]), Column("x", "int64", hashing=HASHING), [-(2**63)] * 3),
        (pa.array(["ä", None, ""]), Column("x", "string", hashing=HASHING), ["ä".encode(), b"", b""]),
        (
            pa.array(["ä", None, "b"], pa.large_string()),
            Column("x", "string", hashing=HASHING),
            ["ä".encode(), b"", b"b"],
        ),
        (
            pa.array(["ä", None, "b"]).dictionary_encode(),
            Column("x", "string", hashing=HASHING),
            ["ä".encode(), b"", b"b"],
        ),
        (pa.array([2**53 + 1, None, -3]), Column("x", "string", hashing=HASHING), [b"9007199254740993", b"", b"-3"]),
        (pa.array([0.1, None, -3]), Column("x", "float"), [np.float32(0.1), np.nan, -3]),
        (pa.array([1, None, 3]), Column("x", "float"), [1, np.nan, 3]),
        (pa.array([None, None, None]), Column("x", "float"), [np.nan] * 3),
        (
            pa.array([[1], None, [2, 3]], pa.large_list(pa.int32())),
            Column("x", "int64", "ignored", VARIABLE, 1),
            [[1], [-(2**63)], [2]],
        ),
        (
            pa.array([["a"], [], ["b", None]]),
            Column("x", "string", "ignored", VARIABLE, 2),
            [[b"a", b""], [b"", b""], [b"b", b""]],
        ),
        (pa.array([[1, 2], [3, None], [5, 6]]), Column("x", "float", shape=(2,)), [[1, 2], [3, np.nan], [5, 6]]),
        (pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float64(), 2)), Column("x", "float", shape=(2,)), [[1, 2]] * 3),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_values_are_stored_as_the_schema_says_and_null_is_missing(tmp_path, values, column, expected):
    stored = convert_column(tmp_path / "out", values, column)
    np.testing.assert_array_equal(stored, np.array(expected, stored.dtype))


def test_columns_that_the_schema_does_not_name_are_left_out(tmp_path):
    convert_rows(tmp_path / "out", {"click": [1], "secret": ["x"]}, schema=with_columns())
    with open(tmp_path / "out" / "train" / "part-00000-00000.tfrecord", "rb") as file:
        assert b"secret" not in file.read()


def test_inferred_columns_get_five_buckets_a_value_within_limits(tmp_path):
    columns = [Column(name, "int64", hashing=Hashing(2)) for name in ("few", "many", "set")]
    rows = {
        "few": [i % 7 for i in range(3_000)],
        "many": list(range(3_000)),
        "set": list(range(3_000)),
        "click": [1] * 3_000,
    }
    convert_rows(tmp_path / "out", rows, schema=with_columns(*columns), inferred=frozenset(["few", "many"]))
    stored = DataFolder.open(str(tmp_path / "out")).schema
    buckets = [stored.column(name).hashing.buckets for name in ("few", "many", "set")]
    assert buckets == [1_001, pytest.approx(15_001, rel=0.02), 2]


def test_columns_of_one_table_are_sized_by_the_one_with_the_most_values(tmp_path):
    columns = [Column("item", "int64", hashing=Hashing(2)), Column("seen", "int64", hashing=Hashing(2, table="item"))]
    rows = {"item": list(range(300)) * 10, "seen": list(range(3_000)), "click": [1] * 3_000}
    convert_rows(tmp_path / "out", rows, schema=with_columns(*columns), inferred=frozenset(["item", "seen"]))
    stored = DataFolder.open(str(tmp_path / "out")).schema
    item, seen = (stored.column(name).hashing.buckets for name in ("item", "seen"))
    assert item == seen == pytest.approx(15_001, rel=0.02)


def test_buckets_are_counted_on_the_training_split_alone(tmp_path):
    rows = {"id": list(range(3_000)), "date": [20220501] * 500 + [20220502] * 2_500, "click": [1] * 3_000}
    schema = with_columns(Column("id", "int64", hashing=Hashing(2)))
    convert_rows(tmp_path / "out", rows, schema=schema, inferred=frozenset(["id"]), split="date:2022-05-02,2022-05-03")
    assert DataFolder.open(str(tmp_path / "out")).schema.column("id").hashing.buckets == pytest.approx(2_501, rel=0.02)


# Splits

DAYS = ["2022-05-01", "2022-05-02", "2022-05-03", "2022-05-04", "2022-04-30"]
EXPECTED = [0, 1, 2, 2, 0]  # validation from 2022-05-02, test from 2022-05-03


def test_a_date_split_writes_each_row_to_its_split(tmp_path):
    rows = make_rows(300) | {"date": [int(DAYS[i % 5].replace("-", "")) for i in range(300)]}
    statistics = convert_rows(tmp_path / "out", rows, split="date:2022-05-02,2022-05-03")
    for code, name in enumerate(("train", "validation", "test")):
        expected = [FIRST_ID + i for i in range(300) if EXPECTED[i % 5] == code]
        assert read_stored(tmp_path / "out" / name, COLUMNS)["row_id"].tolist() == expected
        assert statistics[name].rows == len(expected)


def test_rows_from_the_last_date_on_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "data_pipeline")
    rows = make_rows(300) | {"date": [DAYS[i % 5] for i in range(300)]}
    statistics = convert_rows(tmp_path / "out", rows, split="date:2022-05-02,2022-05-03,2022-05-04")
    assert [split.rows for split in statistics.values()] == [120, 60, 60]
    assert read_stored(tmp_path / "out" / "test", COLUMNS)["row_id"].tolist() == list(
        range(FIRST_ID + 2, FIRST_ID + 300, 5)
    )
    assert "convert: 60 rows left out: of the last date of --split or later" in caplog.messages


@pytest.mark.parametrize("split", ["column", "date:2022-05-02,2022-05-03"])
def test_the_column_that_splits_a_table_is_no_feature(tmp_path, split):
    parts = {"column": ["train", "test"], "date:2022-05-02,2022-05-03": [20220501, 20220503]}[split]
    table = pa.table({"user": [1, 2], "part": parts, "click": [1, 0], "buy": [0, 0]})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    paths = [f"--input={tmp_path}/log.parquet", f"--output_dir={tmp_path}/data", "--source=parquet"]
    assert _status(["convert", *paths, "--behaviors=click,buy", f"--split={split}", "--split_column=part"]) == 0
    assert [column.name for column in DataFolder.open(f"{tmp_path}/data").schema.inputs] == ["user"]


def test_days_are_not_read_from_the_column_of_groups(tmp_path, capsys):
    flags = ["--source=csv", "--input=log.csv", f"--output_dir={tmp_path}/data", "--shard_by_day"]
    assert _status(["convert", *flags, "--split=groups:0.8,0.1,0.1", "--split_column=user"]) == 2
    assert (
        "--shard_by_day: expected --split=date:... or fraction:..., got 'groups:0.8,0.1,0.1'" in capsys.readouterr().err
    )


def test_the_days_of_a_log_name_the_shards_of_each_split(tmp_path):
    rows = make_rows(300) | {"date": [int(DAYS[i % 5].replace("-", "")) for i in range(300)]}
    convert_rows(tmp_path / "out", rows, split="date:2022-05-02,2022-05-03", days=DateColumn("date"))
    names = {name: sorted(path.name for path in (tmp_path / "out" / name).glob("*.tfrecord")) for name in SPLITS}
    assert names["train"] == ["2022-04-30-part-00000-00000.tfrecord", "2022-05-01-part-00000-00000.tfrecord"]
    assert names["validation"] == ["2022-05-02-part-00000-00000.tfrecord"]
    stored = read_stored(tmp_path / "out" / "train", COLUMNS)["row_id"].tolist()
    assert stored == [FIRST_ID + i for i in (*range(4, 300, 5), *range(0, 300, 5))]


def test_a_log_without_days_cannot_have_a_shard_for_each(tmp_path):
    message = error_of(tmp_path / "out", make_rows(5) | {"data": DAYS}, days=DateColumn("date"))
    assert "--shard_by_day: expected the column 'date' to split by, found none; did you mean 'data'?" in message


def test_a_split_column_that_is_missing_is_named_with_a_hint(tmp_path):
    message = error_of(tmp_path / "out", make_rows(5) | {"data": DAYS}, split="date:2022-05-02,2022-05-03")
    assert "--split: expected the column 'date' to split by, found none; did you mean 'data'?" in message


def test_every_row_is_in_exactly_one_split(tmp_path):
    convert_rows(tmp_path / "out", make_rows(500), split="fraction:.6,.2,.2")
    parts = [
        read_stored(tmp_path / "out" / name, COLUMNS)["row_id"].tolist() for name in ("train", "validation", "test")
    ]
    assert sorted(row for part in parts for row in part) == [FIRST_ID + i for i in range(500)]
    assert all(part == sorted(part) for part in parts), "rows of a split keep their order"


# Labels that break the hierarchy: rows 1, 3 and 4 are pay without click, row 4 is qa without click too

BROKEN = {name: [0] * 6 for name in ("row_id", "user", "brand", "price", "importance", "cart", "wish")}
BROKEN |= {"tags": [[]] * 6, "vector": [[0.0, 0.0]] * 6}
BROKEN |= {"row_id": list(range(6)), "click": [1, 0, 0, 0, 0, 1], "pay": [1, 1, 0, 1, 1, 0], "qa": [0, 0, 0, 0, 1, 0]}
SOUND = {name: values[:1] for name, values in BROKEN.items()}
COUNTS = {"d_mi without click": 1, "d_ma without click": 0, "purchase without click": 3}


def test_coerce_keeps_and_counts_rows_against_the_hierarchy(tmp_path):
    statistics = convert_rows(tmp_path / "out", BROKEN, nesting="coerce")["train"]
    stored = read_stored(tmp_path / "out" / "train", COLUMNS)
    assert stored["pay"].tolist() == BROKEN["pay"], "labels are stored as they were logged"
    assert statistics.violations == COUNTS
    assert statistics.rates() == {"click": 2 / 6, "d_mi": 0, "d_ma": 0, "purchase": 1 / 6}


def test_drop_leaves_out_and_counts_rows_against_the_hierarchy(tmp_path):
    statistics = convert_rows(tmp_path / "out", BROKEN, nesting="drop")["train"]
    assert read_stored(tmp_path / "out" / "train", COLUMNS)["row_id"].tolist() == [0, 2, 5]
    assert statistics.violations == COUNTS
    assert statistics.rows == 3
    assert statistics.columns["importance"]["count"] == 3
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["train"]["violations"] == COUNTS


def test_violations_are_counted_in_the_split_of_their_row(tmp_path):
    rows = BROKEN | {"date": [20220501, 20220501, 20220502, 20220502, 20220503, 20220503]}
    statistics = convert_rows(tmp_path / "out", rows, split="date:2022-05-02,2022-05-03", nesting="drop")
    counts = {name: split.violations["purchase without click"] for name, split in statistics.items()}
    assert counts == {"train": 1, "validation": 1, "test": 1}
    assert {name: split.rows for name, split in statistics.items()} == {"train": 1, "validation": 1, "test": 1}


def test_error_names_file_and_row_of_the_first_violation(tmp_path):
    message = error_of(tmp_path / "out", SOUND, SOUND, BROKEN, nesting="error")
    assert message.startswith(
        "memory.log: row 6: expected labels that keep the hierarchy, got d_mi without click"
    )  # 2 + 4


def test_error_lets_a_log_pass_that_keeps_the_hierarchy(tmp_path):
    statistics = convert_rows(tmp_path / "out", make_rows(40, nested=True), nesting="error")
    assert statistics["train"].rows == 40


def test_a_log_without_gates_has_nothing_to_drop(tmp_path):
    schema = Schema((CLICK, Column("buy", "int64", "behavior")), (Level("click", ("click",)), Level("buy", ("buy",))))
    statistics = convert_rows(tmp_path / "out", {"click": [0, 1], "buy": [1, 0]}, schema=schema, nesting="drop")
    assert statistics["train"].rows == 2


# Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_a_number_that_is_not_finite_is_named_by_file_row_and_column(tmp_path, value):
    tables = [{"price": [1.0, 2.0], "click": [0, 1]}, {"price": [None, 3.0, value], "click": [0, 1, 1]}]
    message = error_of(tmp_path / "out", *tables, schema=with_columns(Column("price", "float")))
    assert message.startswith(
        "memory.log: row 4: column 'price': expected a finite number, or null for a missing one, got"
    )


@pytest.mark.parametrize("dtype", ["int64", "float"])
def test_a_negative_weight_is_named_by_file_row_and_column(tmp_path, dtype):
    rows = {"w": [1, None, -2], "click": [0, 0, 0]}
    message = error_of(tmp_path / "out", rows, schema=with_columns(Column("w", dtype, "weight")))
    assert message.startswith("memory.log: row 2: column 'w': expected a weight of at least 0, got -2")


def test_an_element_that_is_not_finite_is_named_by_the_row_of_its_vector(tmp_path):
    rows = {"vector": [[1.0, 2.0], [3.0, None], [5.0, np.nan]], "click": [0, 0, 0]}
    message = error_of(tmp_path / "out", rows, schema=with_columns(Column("vector", "float", shape=(2,))))
    assert message.startswith("memory.log: row 2: column 'vector': expected a finite number")


def test_an_element_that_is_not_finite_is_named_by_the_row_of_its_list(tmp_path):
    rows = {"prices": [[1.0, 2.0, 3.0], [], [4.0, np.inf]], "click": [0, 0, 0]}
    schema = with_columns(Column("prices", "float", "truth", VARIABLE))
    assert error_of(tmp_path / "out", rows, schema=schema).startswith("memory.log: row 2: column 'prices': ")


def test_a_number_that_is_not_finite_is_let_through_in_an_ignored_column(tmp_path):
    statistics = convert_rows(
        tmp_path / "out",
        {"note": [1.0, np.nan], "click": [0, 1]},
        schema=with_columns(Column("note", "float", "ignored")),
    )
    assert statistics["train"].rows == 2


@pytest.mark.parametrize("vector, found", [([1.0], 1), ([1.0, 2.0, 3.0], 3), ([], 0)])
def test_a_vector_of_another_length_is_named_by_file_row_and_column(tmp_path, vector, found):
    tables = [{"vector": [[1.0, 2.0]] * 3, "click": [0] * 3}, {"vector": [[1.0, 2.0], vector], "click": [0] * 2}]
    message = error_of(tmp_path / "out", *tables, schema=with_columns(Column("vector", "float", shape=(2,))))
    assert message == f"memory.log: row 4: column 'vector': expected 2 values as the schema says, got {found}"


def test_a_column_that_is_missing_is_named_with_a_hint(tmp_path):
    rows = make_rows(3)
    rows["prise"] = rows.pop("price")
    message = error_of(tmp_path / "out", rows)
    assert message == "memory.log: expected the column 'price' of the schema, found none; did you mean 'prise'?"


@pytest.mark.parametrize(
    "column, values, found",
    [
        (Column("x", "int64", hashing=HASHING), ["7", "seven"], "int64 as the schema says, got string"),
        (Column("x", "int64", hashing=HASHING), [7.5, 1.0], "int64 as the schema says, got double"),
        (Column("x", "float"), ["cheap", "1"], "float as the schema says, got string"),
        (Column("x", "float"), [[1.0], [2.0]], "float as the schema says, got list<item: double>"),
        (Column("x", "float", shape=(2,)), [1.0, 2.0], "float as the schema says, got double"),
        (Column("x", "string", hashing=HASHING), [["a"], ["b"]], "string as the schema says, got list<item: string>"),
        (Column("x", "int64", "ignored", VARIABLE), [["a"], ["b"]], "int64 as the schema says, got list<item: string>"),
    ],
)
def test_a_column_of_another_dtype_is_named_by_file_and_rows(tmp_path, column, values, found):
    message = error_of(tmp_path / "out", {"x": values, "click": [0, 1]}, schema=with_columns(column))
    assert message.startswith(f"memory.log: column 'x': expected {found} in rows 0 to 1 (")
    assert message.endswith("mend the schema or the log")


def test_a_text_among_numbers_is_named_by_the_rows_of_its_batch(tmp_path):
    tables = [{"x": ["1", "2", "3"], "click": [0] * 3}, {"x": ["4", "five"], "click": [0] * 2}]
    message = error_of(tmp_path / "out", *tables, schema=with_columns(Column("x", "int64", hashing=HASHING)))
    assert "in rows 3 to 4 (" in message and "five" in message


def test_a_failure_in_a_later_batch_leaves_nothing_behind(tmp_path):
    broken = make_rows(1_100) | {"price": [float("inf")] * 1_100}
    message = error_of(
        tmp_path / "out", make_rows(2_000), broken, record_format="row"
    )  # error_of looks at what is left
    assert "row 2000" in message


def test_a_failure_leaves_an_empty_folder_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    error_of(tmp_path / "out", make_rows(3) | {"price": [float("nan")] * 3})
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    message = error_of(tmp_path / "out", make_rows(3), kind=Hm3Error)
    assert message.startswith(f"{tmp_path}/out: expected a new or empty folder, found files")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    convert_rows(tmp_path / "out", make_rows(3))
    assert (tmp_path / "out" / "schema.json").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        Hm3Error, match=rf"^{re.escape(str(tmp_path))}/file/out.*: expected a place that can be written"
    ):
        convert_rows(tmp_path / "file" / "out", make_rows(3))
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_remote_output_without_tensorflow_io_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(Hm3Error, match="^s3://bucket/data: expected tensorflow-io for a remote path"):
        convert_rows("s3://bucket/data", make_rows(3))


@pytest.mark.parametrize("option, value, hint", [("nesting", "corce", "coerce"), ("record_format", "rows", "row")])
def test_an_unknown_option_is_refused_before_anything_is_read(tmp_path, option, value, hint):
    message = error_of(tmp_path / "out", {"nothing": []}, kind=ConfigError, **{option: value})
    assert message.startswith(f"--{option}: expected") and message.endswith(f"did you mean {hint!r}?")
