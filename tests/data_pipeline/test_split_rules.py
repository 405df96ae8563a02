"""Which split and day the rules give each row."""

import re

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.split_rules import LEFT_OUT, DateColumn, FractionRule, ThresholdRule, parse_split
from hm3_tf.errors import DataError, UsageError

DAYS = ["2022-05-01", "2022-05-02", "2022-05-03", "2022-05-04", "2022-04-30"]
EXPECTED = [0, 1, 2, 2, 0]  # validation from 2022-05-02, test from 2022-05-03


@pytest.mark.parametrize(
    "dates",
    [
        pa.array([int(day.replace("-", "")) for day in DAYS]),
        pa.array([day.replace("-", "") for day in DAYS]),
        pa.array(DAYS),
        pa.array([f"{day}T23:59:59" for day in DAYS]),
        pa.array([f"{day} 00:00:00" for day in DAYS]),
        pa.array(np.array(DAYS, "datetime64[D]")),
        pa.array(np.array([f"{day}T23:59:59.999" for day in DAYS], "datetime64[ms]")),
        pa.array(np.array([f"{day}T00:00:00" for day in DAYS], "datetime64[us]")),
        pa.array(DAYS).dictionary_encode(),
        *(pa.array(np.array(DAYS, f"datetime64[{unit}]").astype(np.int64)) for unit in ("s", "ms", "us", "ns")),
        pa.array(np.array([f"{day}T23:59:59" for day in DAYS], "datetime64[s]").astype(np.int64)),
        pa.array(np.array(DAYS, "datetime64[ms]").astype(np.int64).astype(str)),
    ],
    ids=lambda dates: f"{dates.type}-{dates[0]}",
)
def test_a_date_split_puts_each_day_where_it_belongs(dates):
    rule = parse_split("date:2022-05-02, 2022-05-03", "day", seed=0)
    assert rule(pa.RecordBatch.from_pydict({"day": dates})).tolist() == EXPECTED


def test_a_split_by_equal_dates_has_no_validation():
    rule = parse_split("date:2022-05-03,2022-05-03", "day", seed=0)
    assert rule(pa.RecordBatch.from_pydict({"day": DAYS})).tolist() == [0, 0, 2, 2, 0]


def test_the_day_of_an_epoch_is_that_of_utc():
    times = pa.array(np.array(["2022-05-01T23:59:59", "2022-05-02T00:00:00"], "datetime64[s]").astype(np.int64))
    days = DateColumn("time")(pa.RecordBatch.from_pydict({"time": times}))
    assert days.astype(str).tolist() == ["2022-05-01", "2022-05-02"]


@pytest.mark.parametrize("number", [3, 20221301, 20220230, 20220500, -1, 2**63 - 1])
def test_a_number_that_is_no_date_is_refused(number):
    rule = parse_split("date:2022-05-02,2022-05-03", "day", seed=0)
    with pytest.raises(DataError, match=f"--split: expected dates in column 'day', .* got: {number}, which is none"):
        rule(pa.RecordBatch.from_pydict({"day": [20220501, number]}))


def test_rows_from_a_third_date_on_are_left_out():
    rule = parse_split("date:2022-05-02,2022-05-03,2022-05-04", "day", seed=0)
    assert rule(pa.RecordBatch.from_pydict({"day": DAYS})).tolist() == [0, 1, 2, LEFT_OUT, 0]


def test_a_threshold_split_compares_numbers():
    rule = ThresholdRule("day", 5, 7)
    assert rule(pa.RecordBatch.from_pydict({"day": [4, 5, 6, 7, 8]})).tolist() == [0, 1, 1, 2, 2]


def test_a_split_column_that_holds_no_dates_is_named():
    rule = parse_split("date:2022-05-02,2022-05-03", "day", seed=0)
    with pytest.raises(DataError, match="--split: expected dates in column 'day', as .*, got: .*yesterday"):
        rule(pa.RecordBatch.from_pydict({"day": ["2022-05-01", "yesterday"]}))


def test_a_row_without_a_date_is_refused():
    rule = parse_split("date:2022-05-02,2022-05-03", "day", seed=0)
    with pytest.raises(DataError, match="'day'"):
        rule(pa.RecordBatch.from_pydict({"day": ["2022-05-01", None]}))


def test_a_fraction_split_has_its_shares():
    rule = parse_split("fraction:0.7,0.1,0.2", "", seed=0)
    counts = np.bincount(rule(pa.RecordBatch.from_pydict({"x": range(40_000)})), minlength=3)
    for count, share in zip(counts, (0.7, 0.1, 0.2)):
        assert abs(count - 40_000 * share) < 4 * np.sqrt(40_000 * share * (1 - share))


def test_a_fraction_of_zero_is_an_empty_split():
    rule = FractionRule((0.5, 0.0, 0.5), seed=0)
    assert set(rule(pa.RecordBatch.from_pydict({"x": range(1_000)}))) == {0, 2}
    assert not FractionRule((1.0, 0.0, 0.0), seed=0)(pa.RecordBatch.from_pydict({"x": range(1_000)})).any()


def test_a_fraction_split_depends_on_its_seed_and_not_on_the_batches():
    rows = pa.RecordBatch.from_pydict({"x": range(1_000)})
    whole, again, other = (FractionRule((0.5, 0.3, 0.2), seed)(rows) for seed in (1, 1, 2))
    np.testing.assert_array_equal(whole, again)
    assert np.mean(whole == other) < 0.5
    rule = FractionRule((0.5, 0.3, 0.2), 1)
    parts = [rule(rows.slice(first, length), first) for first, length in ((0, 1), (1, 499), (500, 500))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


IDS = np.arange(20_000) // 4


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(IDS),
        pa.array(2**53 + IDS, pa.uint64()),
        pa.array(IDS.astype(str)),
        pa.array([str(i).encode() for i in IDS]),
        pa.array(IDS.astype(str), pa.large_string()).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_rows_of_a_group_are_in_one_split_and_groups_have_the_shares(ids):
    rule = parse_split("groups:0.7,0.1,0.2", "user", seed=0)
    splits = rule(pa.RecordBatch.from_pydict({"user": ids}))
    of_groups = splits.reshape(-1, 4)
    assert (of_groups == of_groups[:, :1]).all()
    for count, share in zip(np.bincount(of_groups[:, 0], minlength=3), (0.7, 0.1, 0.2)):
        assert abs(count - 5_000 * share) < 4 * np.sqrt(5_000 * share * (1 - share))


def test_the_split_of_a_group_depends_on_its_seed_and_not_on_where_it_stands():
    rows = pa.RecordBatch.from_pydict({"user": IDS})
    whole, other = (parse_split("groups:0.5,0.3,0.2", "user", seed)(rows) for seed in (1, 2))
    assert np.mean(whole == other) < 0.5
    rule = parse_split("groups:0.5,0.3,0.2", "user", 1)
    parts = [rule(rows.slice(first, length), 99) for first, length in ((15_000, 5_000), (0, 15_000), (0, 0))]
    np.testing.assert_array_equal(np.concatenate([parts[1], parts[0], parts[2]]), whole)
    # A later version, or another machine, has each group where it was.
    assert rule(pa.RecordBatch.from_pydict({"user": [1, 2, 3, 4, 5, 6]})).tolist() == [0, 0, 0, 1, 2, 0]
    assert rule(pa.RecordBatch.from_pydict({"user": ["a", "b", "c", "d"]})).tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("ids", "message"), [([0.5, 1.0], "integers or text in .*, got double"), ([1, None], "1 missing")]
)
def test_groups_of_no_ids_are_refused(ids, message):
    rule = parse_split("groups:0.5,0.3,0.2", "user", 0)
    with pytest.raises(DataError, match=f"--split: expected .*{message}"):
        rule(pa.RecordBatch.from_pydict({"user": ids}))


def test_a_column_names_the_split_of_each_row():
    rule = parse_split("column", "part", 0)
    names = pa.array(["test", "train", "validation", "train"])
    for column in (names, names.dictionary_encode(), names.cast(pa.binary())):
        assert rule(pa.RecordBatch.from_pydict({"part": column})).tolist() == [2, 0, 1, 0]
    with pytest.raises(DataError, match="--split: expected one of train, validation, test in column 'part', got 'dev'"):
        rule(pa.RecordBatch.from_pydict({"part": ["train", "dev"]}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "date",
        "date:2022-05-02",
        "date:2022-05-03,2022-05-02",
        "date:2022-05-02,2022-05-04,2022-05-03",
        "date:2022-05-02,2022-05-03,2022-05-04,2022-05-05",
        "column:part",
        "groups:0.8,0.2",
        "date:may,june",
        "fraction:0.8,0.2",
        "fraction:0.8,0.1,0.2",
        "fraction:1.2,-0.1,-0.1",
        "fraction:a,b,c",
        "fractions:0.8,0.1,0.1",
    ],
)
def test_a_split_that_cannot_be_understood_is_a_usage_error(text):
    with pytest.raises(UsageError, match=rf"--split: expected date:.* groups:.* column, got {re.escape(repr(text))}"):
        parse_split(text, "date", 0)
