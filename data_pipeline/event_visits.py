"""Visits of users to items, found in events by DuckDB, which holds on disk what does not fit into its memory limit."""

from typing import Any

import duckdb
import pyarrow.parquet as pq

from data_pipeline.event_engine import explained
from data_pipeline.sources.base import BATCH_ROWS

VIEW, VISIT = "view", "click"
"""Behavior of the events that make visits, and the one that visits have as events of their own."""

_GAP = 30 * 60 * 10**9


def write_visits(events: str, visits: str, memory_limit: str, spill: str) -> int:
    """Writes the views that begin a visit as a Parquet file, in the order of the log.

    These are views that come more than half an hour after the last one of their user and item, or are the first.

    Args:
      events: Parquet file with the columns user_id, item_id, time (int64 nanoseconds), behavior, and others.
      visits: File to write, with the same columns; the behavior is `VISIT`.
      memory_limit: What DuckDB may hold in memory, as `2GiB`.
      spill: Folder for what it holds on disk.

    Returns:
      The number of visits.

    Raises:
      Hm3Error: Memory or disk does not suffice.
    """
    query = f"""
        SELECT * EXCLUDE (number, before) REPLACE ('{VISIT}' AS behavior)
        FROM (
            SELECT *, lag(time) OVER (PARTITION BY user_id, item_id ORDER BY time, number) AS before
            FROM (
                SELECT * RENAME (file_row_number AS number) FROM read_parquet(?, file_row_number = true)
                WHERE behavior = '{VIEW}'
            )
        )
        WHERE before IS NULL OR time - before > {_GAP} ORDER BY number"""
    config: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": spill, "preserve_insertion_order": False}
    rows = 0
    with explained(), duckdb.connect(":memory:", config=config) as database:
        found = database.execute(query, [events]).to_arrow_reader(BATCH_ROWS)
        with pq.ParquetWriter(visits, found.schema, compression="zstd") as file:
            for batch in found:
                file.write_batch(batch)
                rows += batch.num_rows
    return rows
