"""Bad records are counted and bounded, in one process or over several."""

import json

import pytest

from data_pipeline.bad_records import BadRecord, BadRecords, by_halves
from hm3_tf.errors import DataError


def record(place, **fields):
    return BadRecord("a.csv", "row", place, "no number", **fields)


def filled(most, *records):
    bad = BadRecords(most)
    for each in records:
        bad.add(each)
    return bad


def test_stretches_count_as_their_records_and_as_one_where_nobody_knows():
    bad = filled(99, record(1), record(5, records=20, rows=20), record(40, records=None, rows=None))
    assert (len(bad), bad.rows) == (22, 21)
    assert (
        bad.summary()
        == "22 bad records skipped; lost: 21 rows, and those of 1 files or rests of files, which nobody knows"
    )


def test_one_record_too_many_is_named():
    bad = filled(2, record(1), record(2))
    with pytest.raises(
        DataError, match=r"a.csv: expected at most 2 bad records in all, got 3, .* row 7: no number; .*raise"
    ):
        bad.add(record(7))


def test_the_bound_is_that_of_all_processes_together():
    bad = filled(3, record(1), record(2))
    bad.merge(filled(3, record(3)))
    assert [each.place for each in bad.records] == [1, 2, 3]
    with pytest.raises(DataError, match="at most 3 bad records in all, got 4"):
        bad.merge(filled(3, record(4), record(5)))


def test_the_file_has_a_line_a_record():
    bad = filled(9, record(3), BadRecord("b.tfrecord", "byte offset", 40, "corrupt", 1, 1_024))
    assert [json.loads(line) for line in bad.to_jsonl().splitlines()] == [
        {"file": "a.csv", "row": 3, "reason": "no number", "records": 1, "rows": 1},
        {"file": "b.tfrecord", "byte_offset": 40, "reason": "corrupt", "records": 1, "rows": 1_024},
    ]


@pytest.mark.parametrize("refused", [set(), {0}, {6}, {3, 4}, set(range(7))])
def test_halves_lose_what_is_refused_alone(refused):
    def attempt(start, stop):
        if refused & set(range(start, stop)):
            raise ValueError("refused")
        return list(range(start, stop))

    parts = list(by_halves(0, 7, attempt, (ValueError,)))
    assert [row for start, stop, _ in parts for row in range(start, stop)] == list(range(7))
    assert {start for start, _, result in parts if isinstance(result, ValueError)} == refused
    assert all(
        result == list(range(start, stop)) for start, stop, result in parts if not isinstance(result, ValueError)
    )
