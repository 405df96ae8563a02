"""Validation: each planted fault is found and named, and a clean log finds nothing."""

import dataclasses
import glob
import json

import numpy as np
import pytest

from data_pipeline import schema as schemas
from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from data_pipeline.validate import validate, validate_sample
from data_pipeline.validate_profile import profile
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
    validation = validate(data, "day")
    assert not severe(validation)
    assert list(validation.days["test"]) == ["day 6"]
    assert not severe(validate(data))


def test_validation_counts_what_the_conversion_counted(data):
    counted, stored = profile(data.split("train"), data.schema).statistics(), data.stored_statistics()["train"]
    assert counted.label_patterns == stored.label_patterns
    assert counted.columns.keys() == stored.columns.keys()
    for name, figures in counted.columns.items():
        exact = {key: figures[key] for key in ("count", "cardinality") if key in figures}
        assert exact.items() <= stored.columns[name].items()


@pytest.mark.parametrize(
    ("world", "rates", "seed", "found"),
    [
        ("latent_intent", "paper", 2, set()),
        ("non_nested", "dense", 3, {"hierarchy"}),  # one purchase in eight is without a click
    ],
)
def test_a_simulated_world_finds_nothing_but_what_it_is_made_for(tmp_path, world, rates, seed, found):
    log = SimulatedLog(world, rates, 20_000, seed)
    convert(SimulatedSource(log), str(tmp_path / "data"), day_split())
    data = DataFolder.open(str(tmp_path / "data"))
    sample = validate_sample(data, data.split("train"), [column.name for column in data.schema.inputs])
    assert {check for check, *_ in severe(validate(data))} == found
    assert {finding.check for finding in sample if finding.severity != "info"} == found


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


def added(rows):
    """Returns {column: its values} of inputs that a log should not have, or not so."""
    hours = 1_651_366_800 + 86_400 * (np.arange(ROWS) * DAYS // ROWS)  # 2022-05-01 01:00 and so on
    return {
        Column("copy_of_click", "int64", hashing=IDS): rows["click"],
        Column("dwell", "float"): rows["click"] * (1 + rows["price"]),
        Column("falls", "float"): np.where(rows["pay"], -1.0, rows["price"]),
        Column("wished", "string", hashing=IDS): [b"yes" if wish else b"no" for wish in rows["wish"]],
        Column("order", "int64", hashing=IDS): [i if pay else None for i, pay in enumerate(rows["pay"])],
        Column("basket", "int64", shape=(None,), max_length=4, hashing=IDS): [
            [i % 7, i % 11, *([99] * pay)] for i, pay in enumerate(rows["pay"])
        ],
        Column("session", "int64", hashing=IDS): np.arange(ROWS),
        Column("few_buckets", "int64", hashing=Hashing(101)): rows["item"],
        Column("fewer_buckets", "int64", hashing=Hashing(501)): rows["item"],
        Column("as_number", "float"): rows["item"].astype(np.float32),
        Column("in_two_days_ts", "int64", hashing=IDS): hours + 2 * 86_400,
        Column("seldom_ts", "int64", hashing=IDS): hours + 2 * 86_400 * (np.arange(ROWS) == 999),
        Column("same_day_ts", "int64", hashing=IDS): hours,
        Column("other_zone_ts", "int64", hashing=IDS): hours + 86_400,
        Column("video_time", "int64", hashing=IDS): 1_000 * (10 + np.arange(ROWS) % 300),
        Column("never_date", "string", hashing=IDS): [b"9999-12-31"] * (ROWS - 1) + [b"2022-05-01"],
        Column("days_before_ts", "int64", hashing=IDS): hours - 3 * 86_400,
        Column("sparse", "string", hashing=IDS): [b"a" if i % 3 == 0 else None for i in range(ROWS)],
    }


LOGS = {
    "labels": (purchases_without_click, clicks_not_logged_one_day, clicks_not_logged_in_test),
    "values": (missing_labels, other_currency, recoded_brands, ids_through_a_float, a_day_lost, no_purchases_in_test),
    "more": (clicks_lost_where_bought, no_brands, one_price),
    "none": (no_purchases,),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """{name: (log, its validation)} of logs with faults planted into them."""
    logs = {}
    for name, faults in LOGS.items():
        rows = clean_rows()
        for fault in faults:
            fault(rows)
        logs[name] = log_of(tmp_path_factory.mktemp(name) / "data", rows)
    rows = clean_rows()
    columns = added(rows)
    rows |= {column.name: values for column, values in columns.items()}
    schema = dataclasses.replace(CLEAN, columns=(*CLEAN.columns, *columns))
    logs["columns"] = log_of(tmp_path_factory.mktemp("columns") / "data", rows, schema)
    return {name: (log, validate(log)) for name, log in logs.items()}


FAULTS = (  # log, check, severity, where, what, remedy
    ("labels", "hierarchy", "warning", "train", "77 rows with purchase without click", "data.nesting"),
    ("labels", "rates", "warning", "test, level 'click'", "5.2000%, in train 36.6000%", "logged in the same way"),
    (
        "labels",
        "days",
        "warning",
        "train, 2022-05-03, level 'click'",
        "0.0000%, over all days 36.6000%",
        "leave the day out",
    ),
    ("values", "missing_label", "warning", "validation, column 'cart'", "10 of 500 labels", "fill them in"),
    ("values", "drift", "warning", "test, column 'price'", "0.807 bits", "unit, coding or source"),
    ("values", "drift", "warning", "test, column 'brand'", "0.824 bits", "unit, coding or source"),
    ("values", "unseen", "warning", "test, column 'brand'", "100.0% of its values", "coded or cast"),
    ("values", "unseen", "warning", "test, column 'item'", "100.0% of its values", "an id through a float"),
    (
        "values",
        "days",
        "warning",
        "train",
        "1 days between its first and last have no row, the first is 2022-05-02",
        "lost",
    ),
    (
        "values",
        "level",
        "warning",
        "test, level 'purchase'",
        "never happened in 500 rows",
        "labels of these days had come",
    ),
    ("more", "hierarchy", "error", "test", "43 rows with purchase without click, 100.00%", "data.nesting"),
    ("more", "level", "error", "train, level 'purchase'", "never happened in 2,000 rows", "schema.json"),
    ("more", "missing", "warning", "train, column 'brand'", "no value in any row", "mend the join"),
    ("more", "constant", "warning", "train, column 'price'", "the same value in every row", "role 'ignored'"),
    ("none", "level", "error", "train, level 'purchase'", "never happened in 2,000 rows", "schema.json"),
    *(
        (
            "columns",
            "label_leak",
            "error",
            f"train, column {column!r}",
            f"tells {label!r} with an AUC of 1.0000",
            "role 'ignored'",
        )
        for column, label in (
            ("copy_of_click", "click"),
            ("dwell", "click"),
            ("falls", "purchase"),
            ("wished", "d_ma.wish"),
            ("order", "purchase"),
            ("basket", "purchase"),
        )
    ),
    (
        "columns",
        "late_feature",
        "warning",
        "train, column 'in_two_days_ts'",
        "2,000 of its times (100.00%)",
        "as of the impression",
    ),
    (
        "columns",
        "late_feature",
        "warning",
        "train, column 'seldom_ts'",
        "1 of its times (0.05%)",
        "as of the impression",
    ),
    ("columns", "missing", "info", "train, column 'sparse'", "66.6% of its values are missing", "will be predicted"),
    (
        "columns",
        "identifier",
        "warning",
        "train, column 'session'",
        "about 2,000 values in 2,000 rows",
        "a coarser value",
    ),
    ("columns", "unseen", "warning", "test, column 'session'", "100.0% of its values", "no feature"),
    (
        "columns",
        "collisions",
        "warning",
        "train, column 'few_buckets'",
        "200 values in 101 buckets 86%",
        "to 1,000",
    ),  # 1 - (1 - 1/100) ** 199
    ("columns", "collisions", "info", "train, column 'fewer_buckets'", "200 values in 501 buckets 33%", "to 1,000"),
    ("columns", "float_ids", "warning", "train, column 'as_number'", "100% of its numbers", "int64 or string"),
    ("columns", "constant", "warning", "train, column 'as_number'", "the same value in every row", "role 'ignored'"),
    ("columns", "drift", "warning", "test, column 'in_two_days_ts'", "bits beyond chance", "train on later days"),
)


@pytest.mark.parametrize(
    ("log", "check", "severity", "where", "what", "remedy"),
    FAULTS,
    ids=[f"{check} of {log}: {where}" for log, check, _, where, *_ in FAULTS],
)
def test_a_planted_fault_is_found_and_named_with_its_remedy(faulty, log, check, severity, where, what, remedy):
    _, validation = faulty[log]
    found = [f for f in validation.findings if (f.check, f.where) == (check, where) and what in f.what]
    assert [f.severity for f in found] == [severity]
    assert remedy in found[0].remedy


@pytest.mark.parametrize("log", [*LOGS, "columns"])
def test_no_check_finds_what_was_not_planted(faulty, log):
    _, validation = faulty[log]
    planted = {check for name, check, severity, *_ in FAULTS if name == log and severity != "info"}
    assert {check for check, *_ in severe(validation)} == planted


def test_a_feature_that_tells_a_label_is_found_before_a_training_too_if_it_is_read(faulty):
    data, validation = faulty["columns"]
    assert min(max(validation.columns[name]["auc"].values()) for name in ("dwell", "falls", "wished", "order")) > 0.98
    for inputs, told in ((["dwell"], ["train, column 'dwell'"]), (["price"], [])):
        assert [f.where for f in validate_sample(data, data.split("train"), inputs) if f.check == "label_leak"] == told
    with pytest.raises(
        DataError, match="expected a log without errors, found 6; the first, label_leak of train, column"
    ):
        validation.refuse_errors()


def test_a_sample_has_enough_of_each_level_to_find_a_leak_or_says_that_it_has_not(tmp_path):
    rows = 30_000
    pay, refund = np.arange(rows) % 250 == 0, np.arange(rows) % 1_000 == 0  # 65 purchases in 16,384 rows
    labels = {"click": np.arange(rows) % 2 == 0, "pay": pay, "refund": refund}
    schema = Schema(
        (Column("paid", "float"), *(Column(name, "int64", "behavior") for name in labels)),
        (
            Level("click", ("click",), gate=True),
            Level("purchase", ("pay",)),
            Level("d_ma", ("refund",)),
        ),
    )
    columns = {name: label.astype(np.int64) for name, label in labels.items()}
    data = log_of(tmp_path / "data", {"paid": pay.astype(np.float32), **columns}, schema, "fraction:1,0,0")
    told = "alone it tells 'purchase' with an AUC of 1.0000: it is that label"
    untold = "not checked: it happened on 30 of the 30,000 rows read, and 80 with it and without it are needed"
    for findings in (validate_sample(data, data.split("train"), ["paid"]), validate(data).findings):
        found = [f for f in findings if f.check == "label_leak"]
        assert {(f.severity, f.where, f.what) for f in found} == {
            ("error", "train, column 'paid'", told),
            ("info", "train, label 'd_ma'", untold),
        }


def test_a_few_users_who_buy_several_times_are_no_leak(tmp_path):
    user = np.arange(3_000) % 300
    pay = ((user < 3) & (np.arange(3_000) < 1_500)).astype(np.int64)  # 15 purchases of three users
    vectors = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    vectors[:3, 1] = 4  # as one of the elements of a longer vector does by chance
    columns = (Column("vector", "float", shape=(4,)), *(Column(name, "int64", "behavior") for name in ("click", "pay")))
    schema = Schema(columns, (Level("click", ("click",), gate=True), Level("purchase", ("pay",))))
    rows = {"vector": vectors[user].tolist(), "click": np.maximum(pay, user % 3 == 0), "pay": pay}
    validation = validate(log_of(tmp_path / "data", rows, schema, "fraction:1,0,0"))
    assert [(f.severity, f.where) for f in validation.findings if f.check == "label_leak"] == [
        ("info", "train, label 'purchase'")
    ]
    assert validation.columns["vector"]["auc"]["purchase"] is None


@pytest.mark.parametrize("column", ["same_day_ts", "days_before_ts", "other_zone_ts", "video_time", "never_date"])
def test_features_of_the_day_or_before_and_those_of_no_time_are_not_late(faulty, column):
    _, validation = faulty["columns"]
    assert not [f for f in validation.findings if f.check == "late_feature" and column in f.where]


def test_a_split_at_random_is_found_by_the_column_of_dates(tmp_path):
    data = log_of(tmp_path / "data", clean_rows(), split="fraction:0.6,0.2,0.2")
    assert severe(validate(data)) == {("time_leak", "warning", "validation"), ("time_leak", "warning", "test")}
    with pytest.raises(UsageError, match="--time_column: expected a column of one int64 or string a row, got 'price'"):
        validate(data, "price")


def test_numbers_of_days_are_a_time_only_where_a_person_says_so(tmp_path):
    rows = clean_rows()
    rows["date"] = np.arange(ROWS) % 7  # the days of the week
    data = log_of(tmp_path / "data", rows, split="fraction:0.6,0.2,0.2")
    guessed, named = validate(data), validate(data, "date")
    assert not severe(guessed) and not guessed.days["train"]
    assert ("time_leak", "warning", "test") in severe(named)
    assert list(named.days["train"]) == [f"day {day}" for day in range(7)]


def test_rows_that_are_there_twice_are_found_in_a_split_and_in_two(tmp_path):
    rows = {name: [*values, *values[:300]] for name, values in clean_rows().items()}
    found = severe(validate(log_of(tmp_path / "once", rows)))
    assert found == {("duplicates", "warning", "train")}
    found = severe(validate(log_of(tmp_path / "twice", rows, split="fraction:0.5,0,0.5")))
    assert ("shared_rows", "warning", "test") in found


def test_the_share_of_rows_whose_group_is_in_train_too_is_told(tmp_path):
    rows = clean_rows()
    columns = (*CLEAN.columns, Column("search", "string", "group"))
    rows["search"] = [b"%d" % (i if i < 2_600 else i - 2_600) if i % 10 else None for i in range(ROWS)]
    validation = validate(log_of(tmp_path / "data", rows, dataclasses.replace(CLEAN, columns=columns)))
    found = {f.where: (f.severity, f.what) for f in validation.findings if f.check == "shared_groups"}
    users = np.isin(rows["user"][2_000:2_500], rows["user"][:2_000]).mean()
    what = "% of its rows are of groups that train has rows of too"
    assert found["validation, column 'user'"] == ("info", f"{100 * users:.1f}{what}")
    assert found["test, column 'search'"] == ("info", f"80.0{what}")
    assert "validation, column 'search'" not in found


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


def test_a_shard_that_was_replaced_by_a_sound_one_of_its_size_is_found(tmp_path):
    for name in ("log", "other"):
        rows = {name: list(values) for name, values in clean_rows().items()}
        rows["price"][7] += name == "other"
        convert_rows(tmp_path / name, rows, schema=CLEAN, split="fraction:0.8,0.1,0.1")
    shard = tmp_path / "log" / "train" / "part-00000-00000.tfrecord"
    assert not [f for f in validate(DataFolder.open(str(tmp_path / "log"))).findings if f.check == "altered"]
    (tmp_path / "other" / "train" / shard.name).replace(shard)
    (finding,) = [f for f in validate(DataFolder.open(str(tmp_path / "log"))).findings if f.check == "altered"]
    assert (finding.where, finding.severity) == (str(shard), "error")
    assert "restore the shard" in finding.remedy


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
