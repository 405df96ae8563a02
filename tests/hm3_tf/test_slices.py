"""Figures by the values of a column."""

import numpy as np
import pytest

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.schema import Column, Hashing, Level, Schema
from hm3_tf import slices
from hm3_tf.errors import ConfigError, Hm3Error
from hm3_tf.slices import Slices, check_columns
from hm3_tf.tally import Rows, Tally
from tests.hm3_tf.test_compare import LEVELS, predicted
from tests.hm3_tf.test_compare import rows as log_rows

SCHEMA = Schema(
    (
        Column("tab", "int64", hashing=Hashing(16)),
        Column("price", "float"),
        Column("tags", "int64", shape=(3,), hashing=Hashing(16)),
        Column("click", "int64", role="behavior"),
    ),
    (Level("click", ("click",)),),
)


def sliced(values, column="tab", each=500):
    """Returns (all rows, their slices) of a log with a column of these values in turn."""
    groups, happened, odds = log_rows(np.random.default_rng(0), users=len(values) * each // 10)
    rows = predicted(groups, happened, odds)
    carried = {column: np.resize(np.array(values), len(rows))}
    rows = Rows(rows.labels, rows.pairs, rows.groups, carried)
    result = Slices([column], lambda: Tally(LEVELS, grouped=True))
    for part in np.array_split(np.arange(len(rows)), 3):
        result.update(rows[part])
    return rows, result.result()


def test_a_slice_has_the_figures_of_its_rows():
    rows, result = sliced([3, 5, 5])
    assert list(result["tab"]) == ["5", "3"], "most rows first"
    for value in (3, 5):
        alone = Tally(LEVELS, grouped=True)
        alone.update(rows[rows.carried["tab"] == value])
        for name, figure in alone.result()["pcvr"].items():
            assert result["tab"][str(value)]["pcvr"][name] == (None if figure is None else pytest.approx(figure)), name


def test_the_slices_of_a_column_are_all_rows():
    rows, result = sliced([1, 2, 3])
    for name in ("rows", "positives"):
        alone = Tally(LEVELS, grouped=True)
        alone.update(rows)
        assert sum(part["pctcvr"][name] for part in result["tab"].values()) == alone.result()["pctcvr"][name]


def test_a_small_slice_says_so():
    _, result = sliced([1] * 99 + [2], each=20)
    assert result["tab"]["2"]["pctcvr"]["too_small"] and result["tab"]["2"]["pctcvr"]["auc_interval"] is None
    assert not result["tab"]["1"]["pctcvr"]["too_small"] and len(result["tab"]["1"]["pctcvr"]["pr_auc_interval"]) == 2


@pytest.mark.parametrize(
    "values, names",
    [
        ([b"new", b"", b"new"], ["new", "(missing)"]),
        ([MISSING_INT64, -1, -1], ["-1", "(missing)"]),
        (
            [b"\xff", b"", b"\xff", b"\xfe", b"(missing)", b"\xff", b"", b"(missing)", b"(missing)", b"(missing)"],
            ["b'(missing)'", "b'\\xff'", "(missing)", "b'\\xfe'"],
        ),
    ],
)
def test_values_are_named(values, names):
    array = np.array(values, object) if isinstance(values[0], bytes) else np.array(values)
    assert list(sliced(array)[1]["tab"]) == names


def test_a_column_of_too_many_values_is_refused(monkeypatch):
    monkeypatch.setattr(slices, "MOST_VALUES", 2)
    with pytest.raises(Hm3Error, match="expected a column of at most 2 values, got more in 'tab'; name a coarser one"):
        sliced([1, 2, 3])


@pytest.mark.parametrize(
    "name, message",
    [
        ("tabs", "--slice: expected a column of the schema, got 'tabs'; did you mean 'tab'"),
        ("price", "--slice: expected a column of ids or categories with one value a row, got 'price' of dtype 'float'"),
        ("tags", r"got 'tags' of dtype 'int64' and shape \[3\]"),
    ],
)
def test_columns_that_cannot_be_sliced_by_are_refused(name, message):
    check_columns(SCHEMA, ["tab"])
    with pytest.raises(ConfigError, match=message):
        check_columns(SCHEMA, [name])
