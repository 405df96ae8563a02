"""Validation: each planted fault is found and named, and a clean log finds nothing."""

import dataclasses
import glob
import json

import numpy as np
import pytest

from data_pipeline import schema as schemas
from data_pipeline.folder import DataFolder
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.validate import validate, validate_sample
from hm3_tf.errors import DataError, UsageError
from tests.data_pipeline.conftest import convert_rows, flip_byte, to_batch, write_index

ROWS, DAYS = 3_000, 6
IDS = Hashing(buckets=50_000)
CLEAN = Schema(
    (
        Column("date", "int64", "ignored"),
        Column("row_id", "int64", "ignored"),
        Column("user", "int64", "group", hashing=IDS),
        Column("item", "int64", hashing=IDS),
        Column("brand", "string", hashing=IDS),
        Column("tags", "int64", shape=(None,), max_length=3, hashing=IDS),
        Column("price", "float"),
        *(Column(name, "int64", "behavior") for name in ("click", "qa", "cart", "wish", "pay")),
    ),
    (
        Level("click", ("click",), gate=True),
        Level("d_mi", ("qa",)),
        Level("d_ma", ("cart", "wish")),
        Level("purchase", ("pay",)),
    ),
)
BY_DATE = "date:2022-05-05,2022-05-06"  # 2,000 rows of training, 500 of validation, 500 of test


def clean_rows():
    """Returns {column: array or list} of a log without faults: six days, labels nested, all columns alike on all days."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 300, ROWS), rng.integers(0, 200, ROWS)
    click = rng.random(ROWS) < 0.3 + items / 500
    cart = click & (rng.random(ROWS) < 0.3)
    labels = {"click": click, "qa": click & (rng.random(ROWS) < 0.3), "cart": cart}
    labels |= {"wish": click & (rng.random(ROWS) < 0.1), "pay": cart & (rng.random(ROWS) < 0.5)}
    return {
        "date": 20220501 + np.arange(ROWS) * DAYS // ROWS,
        "row_id": np.arange(ROWS),
        "user": users,
        "item": 2**60 + 257 * items + 1,  # none of which is a float64
        "brand": [f"brand {item % 20}".encode() for item in items],
        "tags": [list(range(n)) for n in rng.integers(0, 4, ROWS)],
        "price": np.exp(items / 100 + rng.standard_normal(ROWS)).astype(np.float32),
        **{name: label.astype(np.int64) for name, label in labels.items()},
    }


def log_of(path, rows, schema=CLEAN, split=BY_DATE):
    """Returns the log of rows as a converted data folder."""
    batch = to_batch({name: list(values) for name, values in rows.items()}, schema.columns)
    convert_rows(path, dict(zip(batch.schema.names, batch.columns)), schema=schema, split=split)
    return DataFolder.open(str(path))


def severe(validation):
    """Returns {(check, severity, where)} of the findings that are more than an info."""
    return {(f.check, f.severity, f.where) for f in validation.findings if f.severity != "info"}


def with_column(column, values):
    """Returns (schema, rows) with a column more."""
    schema = dataclasses.replace(CLEAN, columns=(*CLEAN.columns, column))
    return schema, {**clean_rows(), column.name: values}


def replaced(column):
    """Returns the schema with another declaration of a column."""
    columns = tuple(column if c.name == column.name else c for c in CLEAN.columns)
    return dataclasses.replace(CLEAN, columns=columns)


def test_a_clean_log_finds_nothing(tmp_path):
    data = log_of(tmp_path / "data", clean_rows())
    validation = validate(data)
    assert not severe(validation)
    assert validation.rows == {"train": 2_000, "validation": 500, "test": 500}
    validation.refuse_errors()
    inputs = [column.name for column in CLEAN.inputs]
    assert not [f for f in validate_sample(data, data.split("train"), inputs) if f.severity != "info"]


def test_a_simulated_log_finds_nothing(data):
    validation = validate(data)
    assert not severe(validation)
    assert list(validation.days["test"]) == ["day 6"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (Column("outcome", "int64", hashing=IDS), lambda rows: rows["click"]),
        (Column("dwell", "float"), lambda rows: rows["click"] * (1 + rows["price"])),
        (Column("dwell", "float"), lambda rows: np.where(rows["pay"], -1.0, rows["price"])),
        (Column("wished", "string", hashing=IDS), lambda rows: [b"yes" if wish else b"no" for wish in rows["wish"]]),
        (Column("order", "int64", hashing=IDS), lambda rows: [i if pay else None for i, pay in enumerate(rows["pay"])]),
    ],
    ids=[
        "a copy of a label",
        "a duration",
        "a duration that falls",
        "a behavior of a level",
        "ids that only buyers have",
    ],
)
def test_a_feature_that_tells_a_label_is_found(tmp_path, column, values):
    schema, rows = with_column(column, values(clean_rows()))
    data = log_of(tmp_path / "data", rows, schema)
    where = f"train, column {column.name!r}"
    validation = validate(data)
    assert ("label_leak", "error", where) in severe(validation)
    assert max(validation.columns[column.name]["auc"].values()) > 0.98
    for inputs, told in (([column.name], [where]), (["price"], [])):
        assert [f.where for f in validate_sample(data, data.split("train"), inputs) if f.check == "label_leak"] == told
    with pytest.raises(
        DataError, match="expected a log without errors, found 1; the first, label_leak of train, column"
    ):
        validation.refuse_errors()


def test_ids_that_do_not_come_again_are_no_leak_but_no_feature_either(tmp_path):
    schema, rows = with_column(Column("session", "int64", hashing=IDS), np.arange(ROWS))
    found = severe(validate(log_of(tmp_path / "data", rows, schema)))
    assert ("identifier", "warning", "train, column 'session'") in found
    assert ("unseen", "warning", "test, column 'session'") in found
    assert "label_leak" not in {check for check, *_ in found}


def purchases_without_click(rows):
    rows["pay"][rows["click"] == 0] = np.arange(np.count_nonzero(rows["click"] == 0)) % 10 == 0


def clicks_lost_where_bought(rows):
    rows["click"][rows["pay"] == 1] = 0


def no_purchases(rows):
    rows["pay"][:] = 0


def no_purchases_in_test(rows):
    rows["pay"][-500:] = 0


def missing_labels(rows):
    rows["cart"] = [None if i % 50 == 0 else label for i, label in enumerate(rows["cart"])]


def no_brands(rows):
    rows["brand"] = [None] * ROWS


def one_price(rows):
    rows["price"][:] = 9.9


def other_currency(rows):
    rows["price"][-500:] *= 100


def recoded_brands(rows):
    rows["brand"][-500:] = [brand.upper() for brand in rows["brand"][-500:]]


def ids_through_a_float(rows):
    rows["item"][-500:] = rows["item"][-500:].astype(np.float64).astype(np.int64)


def clicks_not_logged_in_test(rows):
    for name in ("click", "qa", "cart", "wish", "pay"):
        rows[name][-450:] = 0


def clicks_not_logged_one_day(rows):
    for name in ("click", "qa", "cart", "wish", "pay"):
        rows[name][1_000:1_500] = 0


def a_day_lost(rows):
    rows["date"][500:1_000] = 20220501


@pytest.mark.parametrize(
    ("fault", "check", "severity", "where"),
    [
        (purchases_without_click, "hierarchy", "warning", "train"),
        (clicks_lost_where_bought, "hierarchy", "error", "test"),
        (no_purchases, "level", "error", "train, level 'purchase'"),
        (no_purchases_in_test, "level", "warning", "test, level 'purchase'"),
        (missing_labels, "missing_label", "warning", "validation, column 'cart'"),
        (no_brands, "missing", "warning", "train, column 'brand'"),
        (one_price, "constant", "warning", "train, column 'price'"),
        (other_currency, "drift", "warning", "test, column 'price'"),
        (recoded_brands, "drift", "warning", "test, column 'brand'"),
        (recoded_brands, "unseen", "warning", "test, column 'brand'"),
        (ids_through_a_float, "unseen", "warning", "test, column 'item'"),
        (clicks_not_logged_in_test, "rates", "warning", "test, level 'click'"),
        (clicks_not_logged_one_day, "days", "warning", "train, 2022-05-03, level 'click'"),
        (a_day_lost, "days", "warning", "train"),
    ],
)
def test_a_fault_of_the_values_is_found(tmp_path, fault, check, severity, where):
    rows = clean_rows()
    fault(rows)
    assert (check, severity, where) in severe(validate(log_of(tmp_path / "data", rows)))


def test_few_buckets_are_found_with_the_share_of_values_that_share_theirs(tmp_path):
    data = log_of(tmp_path / "data", clean_rows(), replaced(Column("item", "int64", hashing=Hashing(101))))
    (finding,) = [f for f in validate(data).findings if f.check == "collisions"]
    assert (finding.severity, finding.where) == ("warning", "train, column 'item'")
    assert "200 values in 101 buckets 86%" in finding.what  # 1 - (1 - 1/100) ** 199


def test_ids_that_were_declared_as_numbers_are_found(tmp_path):
    rows = clean_rows()
    rows["item"] = rows["item"].astype(np.float32)
    data = log_of(tmp_path / "data", rows, replaced(Column("item", "float")))
    assert ("float_ids", "warning", "train, column 'item'") in severe(validate(data))


def test_a_split_at_random_is_found_by_the_column_of_dates(tmp_path):
    data = log_of(tmp_path / "data", clean_rows(), split="fraction:0.6,0.2,0.2")
    assert severe(validate(data)) == {("time_leak", "warning", "validation"), ("time_leak", "warning", "test")}
    with pytest.raises(UsageError, match="--time_column: expected a column of one int64 or string a row, got 'price'"):
        validate(data, "price")


def test_rows_that_are_there_twice_are_found_in_a_split_and_in_two(tmp_path):
    rows = {name: [*values, *values[:300]] for name, values in clean_rows().items()}
    found = severe(validate(log_of(tmp_path / "once", rows)))
    assert found == {("duplicates", "warning", "train")}
    found = severe(validate(log_of(tmp_path / "twice", rows, split="fraction:0.5,0,0.5")))
    assert ("shared_rows", "warning", "test") in found


@pytest.mark.parametrize(("days", "severity"), [(1, "error"), (0, None), (-3, None)])
def test_features_stamped_later_than_the_impression_are_found(tmp_path, days, severity):
    seconds = 1_651_363_200 + 86_400 * (np.arange(ROWS) * DAYS // ROWS + days) + 3_600  # 2022-05-01 01:00 and so on
    schema, rows = with_column(Column("profile_ts", "int64", hashing=IDS), seconds)
    findings = validate(log_of(tmp_path / "data", rows, schema)).findings
    found = {f.where: f.severity for f in findings if f.check == "late_feature"}
    assert found.get("train, column 'profile_ts'") == severity


def test_shards_and_statistics_that_are_not_as_they_were_written_are_found(tmp_path):
    data = log_of(tmp_path / "data", clean_rows())
    file = tmp_path / "data" / "statistics.json"
    statistics = json.loads(file.read_text())
    file.write_text(json.dumps({**statistics, "train": statistics["test"]}))
    (shard,) = glob.glob(f"{data.path}/test/*.tfrecord")
    flip_byte(shard, 500)
    validation = validate(data)
    assert {("statistics", "error", "train, statistics.json"), ("unreadable", "error", "test")} <= severe(validation)
    (finding,) = [f for f in validation.findings if f.check == "unreadable"]
    assert shard in finding.what and "byte offset 12" in finding.what  # its data, after the length


def test_a_log_without_training_rows_or_with_infinite_numbers_is_found(tmp_path):
    rows = {name: list(values) for name, values in clean_rows().items()}
    rows["price"][7] = float("inf")
    write_index(str(tmp_path / "train"), rows, columns=CLEAN.columns)
    (tmp_path / "schema.json").write_text(schemas.to_json(CLEAN))
    assert ("infinite", "error", "train, column 'price'") in severe(validate(DataFolder.open(str(tmp_path))))
    (tmp_path / "train").rename(tmp_path / "test")
    assert ("split", "error", "train") in severe(validate(DataFolder.open(str(tmp_path))))


def test_days_in_the_names_of_shards_stand_in_for_a_column(tmp_path):
    columns = tuple(column for column in CLEAN.columns if column.name != "date")
    rows = {name: list(values)[:200] for name, values in clean_rows().items()}
    for split, day in (("train", "2022-05-03"), ("test", "2022-05-02")):
        write_index(str(tmp_path / split), rows, columns=columns)
        (tmp_path / split / "0.tfrecord").rename(tmp_path / split / f"{day}-0.tfrecord")
    (tmp_path / "schema.json").write_text(schemas.to_json(dataclasses.replace(CLEAN, columns=columns)))
    validation = validate(DataFolder.open(str(tmp_path)))
    assert {("time_leak", "warning", "test"), ("shared_rows", "warning", "test")} <= severe(validation)
    assert validation.days["test"]["2022-05-02"]["rows"] == 200
