"""The join of impressions with events in DuckDB, which holds on disk what does not fit into its memory limit."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.event_histories import HistoryBuilder
from hm3_tf.errors import Hm3Error, UsageError

_BATCH_ROWS = 65_536


@dataclasses.dataclass(frozen=True)
class Window:
    """How long after an impression an event still belongs to it.

    Attributes:
      behavior: The events' behavior, and the name of the label.
      nanoseconds: The longest delay; one of exactly this length is within the window.
    """

    behavior: str
    nanoseconds: int


@dataclasses.dataclass(frozen=True)
class History:
    """The items of a user's latest events before an impression.

    Attributes:
      behavior: The events' behavior.
      length: Most items that are kept.
    """

    behavior: str
    length: int

    @property
    def column(self) -> str:
        """Name of the column."""
        return f"{self.behavior}_history"


@dataclasses.dataclass(frozen=True)
class EventCounts:
    """What became of the events of a behavior; the four sum to all of them.

    Attributes:
      joined: Events that belong to an impression.
      late: Events whose user was last shown the item longer ago than the window.
      without_impression: Events whose user was not shown the item before.
      duplicates: Events equal to another one in user, item, time and behavior, which is counted above.
    """

    joined: int
    late: int
    without_impression: int
    duplicates: int

    def __add__(self, other: "EventCounts") -> "EventCounts":
        return EventCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def joined_behaviors(windows: Sequence[Window], histories: Sequence[History]) -> tuple[str, ...]:
    """Returns the behaviors of windows and histories. Those with a window come first: a place says whether it has one."""
    return tuple(dict.fromkeys([*(w.behavior for w in windows), *(h.behavior for h in histories)]))


class EventEngine:
    """Joins impressions with events that it is given in batches.

    Args:
      user: Type of user ids in both tables, int64 or string.
      item: Type of item ids in both tables, int64 or string.
      windows: The labels.
      histories: The histories.
      memory_limit: What DuckDB may hold in memory, as `2GiB`.
      spill: Folder for what it holds on disk.
      threads: Threads that join; default one a core.

    Attributes:
      behaviors: `joined_behaviors`; an event's behavior is a place in them.

    Raises:
      UsageError: The memory limit is no size.
    """

    def __init__(
        self,
        user: pa.DataType,
        item: pa.DataType,
        windows: Sequence[Window],
        histories: Sequence[History],
        memory_limit: str,
        spill: str,
        threads: int | None = None,
    ) -> None:
        self._user, self._item = user, item
        self._windows, self._histories = windows, histories
        self.behaviors = joined_behaviors(windows, histories)
        self._database = connect(memory_limit, spill, threads)
        keys = f'"user" {_sql_type(user)}, item {_sql_type(item)}, time BIGINT'
        self._run(f"CREATE TABLE impressions (id BIGINT, {keys})")
        self._run(f"CREATE TABLE events ({keys}, behavior INTEGER)")

    def close(self) -> None:
        """Frees its memory and its files."""
        self._database.close()

    def add_impressions(self, rows: pa.RecordBatch) -> None:
        """Adds impressions: their number in the log, user, item, and time in int64 nanoseconds, in this order."""
        self._add("impressions", rows)

    def add_events(self, rows: pa.RecordBatch) -> None:
        """Adds events: user, item, time in int64 nanoseconds, and the int32 place of the behavior in `behaviors`."""
        self._add("events", rows)

    def _add(self, table: str, rows: pa.RecordBatch) -> None:
        self._database.register("batch", rows)
        self._run(f"INSERT INTO {table} SELECT * FROM batch")
        self._database.unregister("batch")

    def join(self) -> dict[str, EventCounts]:
        """Finds the impression of each event that was added; to be called once, after all of them.

        Returns:
          {behavior: what became of its events}, of those with a window.

        Raises:
          Hm3Error: Memory or disk does not suffice.
        """
        self._run(
            """CREATE TABLE distinct_events AS
            SELECT "user", item, time, behavior, count(*) - 1 AS repeats FROM events GROUP BY ALL"""
        )
        self._run("DROP TABLE events")
        windows = [window.nanoseconds for window in self._windows]
        # Of impressions at one time the last of the log, max(id), takes the events. An int64 has no room for all delays.
        self._run(
            f"""CREATE TABLE joined AS
            SELECT event.behavior, event.repeats, shown.id,
                event.time::HUGEINT - shown.time <= {windows}[event.behavior + 1] AS is_within
            FROM (FROM distinct_events WHERE behavior < {len(self._windows)}) AS event
            ASOF LEFT JOIN (SELECT "user", item, time, max(id) AS id FROM impressions GROUP BY ALL) AS shown
            ON event."user" = shown."user" AND event.item = shown.item AND event.time >= shown.time"""
        )
        return {window.behavior: self._count(place) for place, window in enumerate(self._windows)}

    def _count(self, place: int) -> EventCounts:
        [counts] = self._run(
            f"""SELECT count(*) FILTER (is_within), count(*) FILTER (NOT is_within), count(*) FILTER (is_within IS NULL),
            coalesce(sum(repeats), 0) FROM joined WHERE behavior = {place}"""
        ).fetchall()
        return EventCounts(*map(int, counts))

    def count_same_impressions(self) -> int:
        """Returns how many impressions have the user, item and time of a later one in the log."""
        [(same,)] = self._run(
            """SELECT coalesce(sum(alike - 1), 0)
            FROM (SELECT count(*) AS alike FROM impressions GROUP BY "user", item, time)"""
        ).fetchall()
        return int(same)

    def columns(self) -> Iterator[pa.RecordBatch]:
        """Yields the labels and histories of the impressions in the order of their ids; to be called once, after `join`.

        Yields:
          `id`; `label0`, `label1`, ..., int64 0 or 1 for each window; and `history0`, `history1`, ..., a list of items for each
          history, the latest first.

        Raises:
          Hm3Error: Memory or disk does not suffice.
        """
        # Not the behaviors' names: to SQL, click and Click are one.
        labels = [f"label{place}" for place in range(len(self._windows))]
        happened = [f"max(behavior = {place} AND is_within)::BIGINT AS {label}" for place, label in enumerate(labels)]
        self._run(
            f"CREATE TABLE labels AS SELECT id, {', '.join(happened)} FROM joined WHERE id IS NOT NULL GROUP BY id"
        )
        self._run("DROP TABLE joined")
        self._run(
            f"""CREATE TABLE found AS
            SELECT id, "user", time, {", ".join(f"coalesce({label}, 0) AS {label}" for label in labels)}
            FROM impressions LEFT JOIN labels USING (id)"""
        )
        self._run("DROP TABLE impressions")
        self._run("DROP TABLE labels")
        histories = [f"history{place}" for place in range(len(self._histories))]
        if histories:
            self._add_histories(labels, histories)
        self._run(f"CREATE TABLE ordered AS SELECT id, {', '.join([*labels, *histories])} FROM found ORDER BY id")
        self._run("DROP TABLE found")
        yield from stored_rows(self._database, "ordered")

    def _add_histories(self, labels: Sequence[str], histories: Sequence[str]) -> None:
        """Adds histories to the table `found`.

        DuckDB sorts, and they are made from the rows as they come: lists that it makes itself do not go to disk.
        """
        places = [self.behaviors.index(history.behavior) for history in self._histories]
        self._run(
            f"""CREATE TABLE timeline AS FROM (
                FROM found UNION ALL BY NAME
                SELECT "user", time, behavior, item FROM distinct_events WHERE list_contains({places}, behavior)
            ) ORDER BY "user", time, behavior NULLS FIRST, item"""
        )
        self._run("DROP TABLE distinct_events")
        lists = [f"{history} {_sql_type(self._item)}[]" for history in histories]
        self._run(
            f"CREATE OR REPLACE TABLE found (id BIGINT, {', '.join([*(f'{label} BIGINT' for label in labels), *lists])})"
        )
        builders = [HistoryBuilder(place, h.length, self._item) for place, h in zip(places, self._histories)]
        last_user = pa.array([None], self._user)
        # Read by a connection of its own, as rows are added meanwhile.
        with contextlib.closing(self._database.cursor()) as reader:
            for rows in stored_rows(reader, "timeline"):
                users = pa.concat_arrays([last_user, rows.column("user")])
                last_user = users.slice(len(rows))
                is_new_user = pc.fill_null(pc.not_equal(users[1:], users[:-1]), True).to_numpy(zero_copy_only=False)
                found = [builder.lists(rows, is_new_user) for builder in builders]
                shown = rows.select(["id", *labels]).filter(rows.column("behavior").is_null())
                self._add("found", pa.RecordBatch.from_arrays([*shown.columns, *found], ["id", *labels, *histories]))
        self._run("DROP TABLE timeline")

    def _run(self, query: str) -> duckdb.DuckDBPyConnection:
        with explained():
            return self._database.execute(query)


def in_order(rows: pa.RecordBatchReader, memory_limit: str, spill: str) -> Iterator[pa.RecordBatch]:
    """Yields rows in the order of their column `id`.

    Args:
      rows: The rows.
      memory_limit: As for an `EventEngine`.
      spill: As for an `EventEngine`.

    Raises:
      UsageError: The memory limit is no size.
      Hm3Error: Memory or disk does not suffice.
    """
    with contextlib.closing(connect(memory_limit, spill, threads=1)) as database:
        database.register("numbered", rows)
        with explained():
            database.execute("CREATE TABLE ordered AS FROM numbered ORDER BY id")
        yield from stored_rows(database, "ordered")


def stored_rows(database: duckdb.DuckDBPyConnection, table: str) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a table in the order in which they came into it.

    Rows that are to be sorted are sorted into a table: sorted for a reader, they take more memory.

    Raises:
      Hm3Error: Memory or disk does not suffice.
    """
    with explained():
        database.execute("SET preserve_insertion_order = true")
        yield from database.execute(f"FROM {table}").to_arrow_reader(_BATCH_ROWS)


def connect(memory_limit: str, spill: str, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """Returns a database in memory that holds on disk what does not fit; the arguments are those of an `EventEngine`.

    Raises:
      UsageError: The memory limit is no size.
    """
    config: dict[str, Any] = {
        "memory_limit": memory_limit,
        "temp_directory": spill,
        "preserve_insertion_order": False,
        **({} if threads is None else {"threads": threads}),
    }
    try:
        database = duckdb.connect(":memory:", config=config)
    except duckdb.Error as error:
        raise UsageError(f"--memory_limit: expected a size such as 2GiB, got {memory_limit!r}") from error
    # Else a sort whose rows nearly fit keeps them all in memory, and leaves no room for its result.
    database.execute("SET debug_force_external = true")
    return database


def _sql_type(key: pa.DataType) -> str:
    return "BIGINT" if pa.types.is_integer(key) else "VARCHAR"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns a lack of memory or disk within the block into one line.

    Raises:
      Hm3Error: There is one.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.TransactionException, duckdb.IOException, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise Hm3Error(
            f"event join: expected room for its tables, got: {reason}; give it more memory (--memory_limit), or more disk "
            "beside --output"
        ) from error
