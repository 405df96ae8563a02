"""Values that are not of the schema: an error that names the first, or rows that are named and left out."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.bad_records import BadRecords
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.sources.batch import SourceBatch
from data_pipeline.typed_rows import ruled_rows, typed_rows
from hm3_tf.errors import DataError

SCHEMA = Schema(
    (
        Column("id", "int64", hashing=Hashing(10)),
        Column("price", "float"),
        Column("vector", "float", shape=(2,)),
        Column("tags", "int64", shape=VARIABLE, max_length=3, hashing=Hashing(10)),
        Column("importance", "float", "weight"),
        Column("click", "int64", "behavior"),
    ),
    (Level("click", ("click",), gate=True),),
)
GOOD = {"id": "7", "price": 1.5, "vector": [1.0, 2.0], "tags": [1, 2], "importance": 1.0, "click": 1}
BAD = {
    "id": ("seven", "expected int64 as the schema says, got string 'seven'"),
    "price": (float("nan"), "expected a finite number, or null for a missing one, got nan"),
    "vector": ([1.0, float("inf")], "expected a finite number, or null for a missing one, got inf"),
    "importance": (-1.0, "expected a weight of at least 0, got -1.0"),
}


def batch_of(rows, numbers=None):
    columns = {name: pa.array([row[name] for row in rows]) for name in GOOD}
    return SourceBatch("a.csv", 100, pa.RecordBatch.from_pydict(columns), numbers)


def test_rows_that_are_right_are_all_kept():
    bad = BadRecords(9)
    rows, kept = typed_rows(batch_of([GOOD] * 3), SCHEMA, bad)
    assert kept is None and not len(bad)
    assert rows.equals(typed_rows(batch_of([GOOD] * 3), SCHEMA, None)[0])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_an_error_or_is_named_and_left_out(name):
    value, reason = BAD[name]
    batch = batch_of([GOOD, GOOD | {"id": "8"}, GOOD | {name: value}, GOOD | {"id": "9"}])
    with pytest.raises(DataError, match=f"^a.csv: .*column '{name}': "):
        typed_rows(batch, SCHEMA, None)
    bad = BadRecords(9)
    rows, kept = typed_rows(batch, SCHEMA, bad)
    assert rows.column("id").to_pylist() == [7, 8, 9]
    assert kept.tolist() == [True, True, False, True]
    assert [(each.file, each.unit, each.place) for each in bad.records] == [("a.csv", "row", 102)]
    assert bad.records[0].reason == f"column '{name}': {reason}"


def test_lists_of_another_length_are_left_out():
    bad = BadRecords(9)
    rows, _ = typed_rows(batch_of([GOOD | {"vector": [1.0]}, GOOD, GOOD | {"vector": None}]), SCHEMA, bad)
    assert rows.num_rows == 1
    assert [each.reason for each in bad.records] == [
        f"column 'vector': expected 2 values as the schema says, got {length}" for length in (1, 0)
    ]


def test_a_row_with_several_bad_values_counts_once():
    bad = BadRecords(9)
    rows, _ = typed_rows(batch_of([GOOD | {name: value for name, (value, _) in BAD.items()}, GOOD]), SCHEMA, bad)
    assert rows.num_rows == 1
    assert len(bad) == 1


def test_rows_are_numbered_as_in_the_file_where_others_were_left_out_before():
    bad = BadRecords(9)
    typed_rows(batch_of([GOOD, GOOD | {"id": "x"}], numbers=np.array([100, 104])), SCHEMA, bad)
    assert bad.records[0].place == 104


def test_a_column_of_which_no_value_is_right_leaves_no_row():
    columns = {name: [GOOD[name]] * 3 for name in GOOD} | {"id": [{"a": 1}] * 3}
    bad = BadRecords(9)
    rows, _ = typed_rows(SourceBatch("a.csv", 0, pa.RecordBatch.from_pydict(columns)), SCHEMA, bad)
    assert (rows.num_rows, len(bad)) == (0, 3)
    with pytest.raises(DataError, match="at most 2 bad records"):
        typed_rows(SourceBatch("a.csv", 0, pa.RecordBatch.from_pydict(columns)), SCHEMA, BadRecords(2))


def test_rows_that_a_rule_refuses_are_left_out():
    def rule(rows, _start):
        if "8" in rows.column("id").to_pylist():
            raise DataError("expected a date, got 8")
        return rows.column("id").to_numpy(zero_copy_only=False).astype(int)

    batch, bad = batch_of([GOOD | {"id": str(i)} for i in range(6, 11)]), BadRecords(9)
    left, (said, twice) = ruled_rows(batch, [rule, lambda rows, start: 2 * rule(rows, start)], bad)
    assert said.tolist() == [6, 7, 9, 10] and twice.tolist() == [12, 14, 18, 20]
    assert left.rows.column("id").to_pylist() == ["6", "7", "9", "10"]
    assert [left.number(i) for i in range(4)] == [100, 101, 103, 104]
    assert str(bad.records[0]) == "a.csv: row 102: expected a date, got 8 (1 row)"
    with pytest.raises(DataError, match="expected a date"):
        ruled_rows(batch, [rule], None)
