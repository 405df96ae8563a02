"""Visits in events: which they are, in which order they are written, and what DuckDB may hold."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.event_visits import write_visits
from hm3_tf.errors import Hm3Error, UsageError

MINUTE = 60 * 10**9


@pytest.fixture
def events(tmp_path):
    """The file of 50,000 views in no order, of 100 users and 20 items; a column has the number of each."""
    rng = np.random.default_rng(0)
    columns = {"user_id": rng.integers(0, 100, 50_000), "item_id": rng.integers(0, 20, 50_000)}
    times = rng.integers(0, 10_000, 50_000) * MINUTE
    notes = [f"{number:09d}" for number in range(50_000)]
    pq.write_table(pa.table({**columns, "time": times, "behavior": ["view"] * 50_000, "note": notes}), tmp_path / "log")
    return tmp_path / "log"


def test_visits_are_in_the_order_of_the_log(events):
    path = events.parent / "visits"
    count = write_visits(str(events), str(path), "1GiB", str(events.parent))
    rows, last, expected = pq.read_table(events).to_pylist(), {}, []
    for row in sorted(rows, key=lambda row: row["time"]):
        key = row["user_id"], row["item_id"]
        if row["time"] - last.get(key, -(10**18)) > 30 * MINUTE:
            expected.append({**row, "behavior": "click"})
        last[key] = row["time"]
    assert count == len(expected) < len(rows)
    assert pq.read_table(path).to_pylist() == sorted(expected, key=lambda row: row["note"])


@pytest.mark.parametrize(
    ("limit", "kind", "message"),
    [
        ("lots", UsageError, "--memory_limit: expected a size such as 2GiB, got 'lots'"),
        ("1KB", Hm3Error, "more memory"),
    ],
)
def test_a_memory_limit_that_is_none_or_too_low_is_named(events, limit, kind, message):
    with pytest.raises(kind, match=message):
        write_visits(str(events), str(events.parent / "visits"), limit, str(events.parent))
