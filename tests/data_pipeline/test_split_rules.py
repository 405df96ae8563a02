"""Which split and day the rules give each row."""

import re

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.split_rules import FractionRule, ThresholdRule, parse_split
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
    ],
    ids=lambda dates: str(dates.type),
)
def test_a_date_split_puts_each_day_where_it_belongs(dates):
    rule = parse_split("date:2022-05-02, 2022-05-03", "day", seed=0)
    assert rule(pa.RecordBatch.from_pydict({"day": dates})).tolist() == EXPECTED


def test_a_split_by_equal_dates_has_no_validation():
    rule = parse_split("date:2022-05-03,2022-05-03", "day", seed=0)
    assert rule(pa.RecordBatch.from_pydict({"day": DAYS})).tolist() == [0, 0, 2, 2, 0]


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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "date",
        "date:2022-05-02",
        "date:2022-05-03,2022-05-02",
        "date:2022-05-02,2022-05-03,2022-05-04",
        "date:may,june",
        "fraction:0.8,0.2",
        "fraction:0.8,0.1,0.2",
        "fraction:1.2,-0.1,-0.1",
        "fraction:a,b,c",
        "fractions:0.8,0.1,0.1",
    ],
)
def test_a_split_that_cannot_be_understood_is_a_usage_error(text):
    with pytest.raises(UsageError, match=rf"--split: expected date:.* or fraction:.* got {re.escape(repr(text))}"):
        parse_split(text, "date", 0)
