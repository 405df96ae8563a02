"""Public logs of behavior events without impressions: each visit of a user to an item becomes a row.

A visit begins with a view that comes more than half an hour after the user's last view of the item. It is a click, on every
row. Other events belong to the visit before them, as the event join says (docs/event_join.md).
"""

import collections
import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.bad_records import BadRecords
from data_pipeline.event_engine import EventCounts, History, Window
from data_pipeline.event_join import EventJoin, JoinReport, join_events, join_table
from data_pipeline.event_tables import EventColumns, EventTable
from data_pipeline.event_visits import VISIT, write_visits
from data_pipeline.records import arrow_type
from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import Maker, from_data, made_rows, release_origin, sized_from_data
from hm3_tf.errors import DataError
from hm3_tf.progress import Progress

_LOGGER = logging.getLogger(__name__)

_DAY = 86_400 * 10**9
_WINDOWS = {"cart": _DAY, "favorite": _DAY, "purchase": 7 * _DAY}
_HISTORY = History(VISIT, 50)
_MEMORY_LIMIT = "1GiB"
_PART_BYTES = 128 * 2**20  # of the files; some three million events
_KEYS = ("user_id", "item_id", "time", "behavior")
_COLUMNS = EventColumns(*_KEYS, time_unit="ns")


@dataclasses.dataclass(frozen=True)
class EventLog:
    """A public log of events in its official layout.

    Attributes:
      name: What errors call it.
      files: Those of its raw rows.
      behaviors: {its name of a behavior: ours}: `view`, the labels `cart`, `favorite` and `purchase`, or one that is only
        counted.
      open_maker: Reads the tables that are joined to the events and returns what makes `user_id`, `item_id`, `time` (int64
        nanoseconds since 1970 in UTC), `behavior` (its name) and the features of each event.
      columns: The raw columns that are read.
      features: Columns beside user, item and time that describe a view.
      utc_hours: What its clock is ahead of UTC.
    """

    name: str
    files: TableFiles
    behaviors: Mapping[str, str]
    open_maker: Callable[[], Maker]
    columns: tuple[str, ...]
    features: tuple[Column, ...] = ()
    utc_hours: int = 0

    @property
    def schema(self) -> Schema:
        """Columns and levels of the visits: click, d_ma and purchase."""
        labels = [window.behavior for window in self._windows()]
        history = from_data(table="item_id")
        columns = (
            Column("date", "string", "ignored"),
            Column("user_id", "int64", "group", hashing=from_data(), entity="user"),
            Column("hour", "int64", hashing=from_data(), entity="user"),
            Column(_HISTORY.column, "int64", "feature", VARIABLE, _HISTORY.length, history, entity="user"),
            Column("item_id", "int64", hashing=from_data()),
            *self.features,
            *(Column(name, "int64", "behavior") for name in (VISIT, *labels)),
        )
        macro = tuple(name for name in labels if name != "purchase")
        click = Level(VISIT, (VISIT,), gate=True)
        return Schema(columns, (click, Level("d_ma", macro), Level("purchase", ("purchase",))))

    @property
    def inferred(self) -> frozenset[str]:
        """Names of the columns whose number of hash buckets is to be set from the data."""
        return sized_from_data(self.schema)

    def _windows(self) -> tuple[Window, ...]:
        return tuple(Window(name, _WINDOWS[name]) for name in self.behaviors.values() if name in _WINDOWS)

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the visits, in the order of their first views in the files; `bad` takes raw rows that cannot be read.

        A large log is joined in parts of some of the users each, one part after another, so that memory does not grow with
        it. What does not fit into memory is meanwhile in the folder for temporary files.

        Raises:
          DataError: A file of the layout is missing or cannot be read, or there are no views.
          Hm3Error: Memory or disk does not suffice.
        """
        rows = 0
        reports: list[JoinReport] = []
        with tempfile.TemporaryDirectory(prefix="hm3-") as folder:
            for log in self._write_events(folder, bad):
                for batch in self._join(log, reports):
                    yield SourceBatch(self.files.path, rows, batch)
                    rows += batch.num_rows
        if not rows:
            raise DataError(f"{self.files.path}: expected views of items, found none; check the files")
        _LOGGER.info("%s: %s visits\n%s", self.files.path, f"{rows:,}", join_table(_sum(reports)))

    def _write_events(self, folder: str, bad: BadRecords | None) -> list[str]:
        """Writes all events with the features of each as Parquet files, each of some users, in the order of the log."""
        make = self._checked(self.open_maker())
        keys = [(name, pa.string() if name == "behavior" else pa.int64()) for name in _KEYS]
        schema = pa.schema([*keys, *((column.name, arrow_type(column)) for column in self.features)])
        count = 1 + sum(map(os.path.getsize, self.files.dataset().files)) // _PART_BYTES
        paths = [os.path.join(folder, f"{part}.parquet") for part in range(count)]
        with Progress("read log", None) as progress, contextlib.ExitStack() as stack:
            parts = [stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd")) for path in paths]
            for batch in self.files.batches(list(self.columns), bad):
                for _, events in made_rows(self.name, make, batch, schema.names, bad):
                    part = events.column("user_id").to_numpy() % count
                    for number, file in enumerate(parts):
                        file.write_batch(events.cast(schema).filter(pa.array(part == number)))
                    progress.advance(events.num_rows)
        return paths

    def _join(self, log: str, reports: list[JoinReport]) -> Iterator[pa.RecordBatch]:
        """Yields the visits of the events in a Parquet file, which is removed, and adds what the join found to `reports`."""
        with tempfile.TemporaryDirectory(dir=os.path.dirname(log)) as folder:
            events, joined = os.path.join(folder, "events"), os.path.join(folder, "joined")
            os.mkdir(events)
            os.rename(log, os.path.join(events, "log.parquet"))
            log, visits = os.path.join(events, "log.parquet"), os.path.join(events, "visits.parquet")
            if write_visits(log, visits, _MEMORY_LIMIT, folder):
                shown = EventTable(TableFiles(visits, "parquet"), _COLUMNS, has_behavior=False)
                happened = EventTable(TableFiles(events, "parquet"), _COLUMNS, has_behavior=True)
                join = EventJoin(shown, happened, self._windows(), (_HISTORY,), of_part=True)
                reports.append(join_events(join, joined, _MEMORY_LIMIT))
                yield from (self._finish(batch.rows) for batch in TableFiles(joined, "parquet").batches())

    def _checked(self, make: Maker) -> Maker:
        """Returns a maker whose events have users, items, times and our names of behaviors."""
        names, ours = pa.array(self.behaviors.keys()), pa.array(self.behaviors.values())

        def make_checked(batch: SourceBatch) -> Mapping[str, Any]:
            columns = make(batch)
            for name in _KEYS:
                if columns[name].null_count:
                    raise pa.ArrowInvalid(f"{columns[name].null_count} events without {name}; leave such rows out")
            places = pc.index_in(columns["behavior"], value_set=names)
            if places.null_count:
                unknown = columns["behavior"][pc.index(pc.is_null(places), True).as_py()].as_py()
                raise pa.ArrowInvalid(f"a behavior {unknown!r}, not one of {', '.join(self.behaviors)}")
            return {**columns, "behavior": ours.take(places)}

        return make_checked

    def _finish(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        clock = pc.cast(pc.add(rows.column("time"), self.utc_hours * 3_600 * 10**9), pa.timestamp("ns"))
        made = {
            "date": pc.cast(pc.cast(clock, pa.date32()), pa.string()),
            "hour": pc.hour(clock),
            VISIT: pa.array(np.ones(rows.num_rows, np.int64)),
        }
        columns = {name: rows.column(name) for name in rows.schema.names} | made
        return pa.RecordBatch.from_pydict({column.name: columns[column.name] for column in self.schema.columns})

    @property
    def origin(self) -> str:
        """Says what the visits are made of, see `release_origin`."""
        return release_origin(self.name, self.files)

    def parts(self) -> list["EventLog"]:
        """Returns the whole log: a visit and its events may be in several files."""
        return [self]

    def count_rows(self, bad: BadRecords | None = None) -> int:
        """Returns the number of visits.

        Raises:
          Hm3Error: As `batches`.
        """
        return sum(batch.rows.num_rows for batch in self.batches(bad))


def _sum(reports: list[JoinReport]) -> JoinReport:
    """Returns what was found in all parts of a log; visits are none of its events."""
    labelled, others = collections.Counter[str](), collections.Counter[str]()
    for report in reports:
        labelled.update(report.labelled)
        others.update(report.other_events)
    del others[VISIT]
    events = {
        name: EventCounts(*map(sum, zip(*(dataclasses.astuple(report.events[name]) for report in reports))))
        for name in reports[0].events
    }
    impressions, same = (sum(getattr(r, name) for r in reports) for name in ("impressions", "same_impressions"))
    return JoinReport(impressions, same, dict(labelled), events, dict(others))
