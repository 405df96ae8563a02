"""Visits of users to items, found in events by DuckDB, which holds on disk what does not fit into its memory limit."""

import contextlib

import pyarrow.parquet as pq

from data_pipeline.event_engine import connect, explained, stored_rows

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
      UsageError: The memory limit is no size.
      Hm3Error: Memory or disk does not suffice.
    """
    query = f"""
        CREATE TABLE visits AS SELECT * EXCLUDE (number, before) REPLACE ('{VISIT}' AS behavior)
        FROM (
            SELECT *, lag(time) OVER (PARTITION BY user_id, item_id ORDER BY time, number) AS before
            FROM (
                SELECT * RENAME (file_row_number AS number) FROM read_parquet(?, file_row_number = true)
                WHERE behavior = '{VIEW}'
            )
        )
        WHERE before IS NULL OR time - before > {_GAP} ORDER BY number"""
    rows, schema = 0, pq.read_schema(events)
    with contextlib.closing(connect(memory_limit, spill)) as database:
        with explained():
            database.execute(query, [events])
        with pq.ParquetWriter(visits, schema, compression="zstd") as file:
            for batch in stored_rows(database, "visits"):
                file.write_batch(batch)
                rows += batch.num_rows
    return rows
