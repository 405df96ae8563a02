"""Histories made a batch at a time, against a search through all rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.event_histories import HistoryBuilder

ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 0, 1]), st.integers(0, 9)), max_size=30)


def search(rows, place, length):
    """Returns the history of each impression among (user, behavior, item)."""
    return [
        [item for other, event, item in rows[:i] if other == user and event == place][::-1][:length]
        for i, (user, behavior, _) in enumerate(rows)
        if behavior is None
    ]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=4), place=st.integers(0, 1), length=st.integers(1, 4))
@pytest.mark.parametrize("item", [int, str])
def test_histories_do_not_depend_on_the_batches(item, rows, cuts, place, length):
    rows = [(user, behavior, item(value)) for user, behavior, value in sorted(rows, key=lambda row: row[0])]
    kind = pa.int64() if item is int else pa.string()
    builder, found, last_user = HistoryBuilder(place, length, kind), [], None
    ends = [*sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for start, end in zip([0, *ends], ends):
        users, behaviors, items = zip(*rows[start:end]) if end > start else ((), (), ())
        batch = pa.record_batch({"behavior": pa.array(behaviors, pa.int32()), "item": pa.array(items, kind)})
        is_new = np.array([user != before for before, user in zip([last_user, *users], users)], bool)
        found += builder.lists(batch, is_new).to_pylist()
        last_user = users[-1] if users else last_user
    assert found == search(rows, place, length)
