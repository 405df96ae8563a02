"""Impressions and behavior events in separate tables become labelled impressions; docs/event_join.md."""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.event_engine import EventCounts, EventEngine, History, Window
from data_pipeline.event_tables import EventColumns, EventTable, key_types
from data_pipeline.sources.base import TableFiles
from hm3_tf.errors import DataError, UsageError
from hm3_tf.progress import Progress

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_DAYS = 36_500  # in nanoseconds an int64


@dataclasses.dataclass(frozen=True)
class JoinReport:
    """What a join found.

    Attributes:
      impressions: Rows that were written.
      same_impressions: Impressions with the user, item and time of a later one in the log, which takes their events.
      labelled: {behavior: impressions that have it}.
      events: {behavior: what became of its events}.
      other_events: {behavior: events} of those without a window.
    """

    impressions: int
    same_impressions: int
    labelled: dict[str, int]
    events: dict[str, EventCounts]
    other_events: dict[str, int]


def parse_windows(text: str) -> tuple[Window, ...]:
    """Returns the windows of `--window`.

    >>> parse_windows("click:30m")
    (Window(behavior='click', nanoseconds=1800000000000),)

    Args:
      text: Such as `click:30m,purchase:7d`; units are s, m, h and d.

    Returns:
      The windows, in order.

    Raises:
      UsageError: It is not of this form, or names a behavior twice.
    """
    windows = []
    for behavior, duration in _pairs("--window", text):
        match = re.fullmatch(r"(\d{1,9})([smhd])", duration)
        seconds = int(match[1]) * _SECONDS[match[2]] if match else None
        if seconds is None or seconds > _LONGEST_DAYS * _SECONDS["d"]:
            raise UsageError(
                f"--window: expected behavior:duration between commas, as click:30m,purchase:7d (s, m, h or d, at most "
                f"{_LONGEST_DAYS}d), got {duration!r} for {behavior!r}"
            )
        windows.append(Window(behavior, seconds * 10**9))
    return tuple(windows)


def parse_histories(text: str) -> tuple[History, ...]:
    """Returns the histories of `--history`.

    >>> parse_histories("click:50")
    (History(behavior='click', length=50),)

    Args:
      text: Such as `click:50,purchase:10`, or empty.

    Returns:
      The histories, in order.

    Raises:
      UsageError: It is not of this form, or names a behavior twice.
    """
    histories = []
    for behavior, length in _pairs("--history", text) if text else ():
        if not re.fullmatch(r"[1-9]\d{0,3}", length):
            raise UsageError(
                "--history: expected behavior:length between commas, as click:50 (from 1 to 9999 items), got "
                f"{length!r} for {behavior!r}"
            )
        histories.append(History(behavior, int(length)))
    return tuple(histories)


def _pairs(flag: str, text: str) -> list[tuple[str, str]]:
    pairs = [item.partition(":") for item in text.split(",")]
    named = [(name.strip(), value.strip()) for name, _, value in pairs]
    names = [name for name, _ in named]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{flag}: expected each behavior once, with a value after a colon, got {text!r}")
    return named


def join_events(
    impressions: TableFiles,
    events: TableFiles,
    output: str,
    columns: EventColumns,
    windows: Sequence[Window],
    histories: Sequence[History],
    memory_limit: str,
) -> JoinReport:
    """Writes impressions with their labels and histories as Parquet, a file for each of theirs, in the order of the log.

    An event belongs to the last impression of its user and item at or before it, if the window of its behavior reaches it.
    A history has the items of the user's events before the impression, whatever they belong to; events at its
    very time are not among them.

    Args:
      impressions: User, item, time, and other columns, all of which are kept.
      events: User, item, time and behavior.
      output: Folder to write, new or empty; it appears when complete, with the report as `_join.json`.
      columns: Names of the columns to join by.
      windows: The labels, columns of int64 0 or 1 named as the behaviors.
      histories: Columns `<behavior>_history`: lists of items, the latest first; equal events are one.
      memory_limit: What DuckDB may hold in memory, as `2GiB`; beyond it, it writes to disk beside `output`.

    Returns:
      What was found.

    Raises:
      DataError: A column is missing or of a wrong type, a value is missing, or there are no impressions.
      Hm3Error: Memory or disk does not suffice, or the folder cannot be written.
      UsageError: Times are integers of no named unit, a new column has the name of one that is there, or a flag cannot be used.
    """
    if storage.is_remote(output):
        raise UsageError(f"--output: expected a folder of this machine, got {output!r}; copy it once it is there")
    shown = EventTable(impressions, columns, has_behavior=False)
    happened = EventTable(events, columns, has_behavior=True)
    types = key_types(shown, happened)
    _check_new_columns(impressions, windows, histories)
    with storage.staged_folder(output) as folder:
        with (
            tempfile.TemporaryDirectory(prefix="spill-", dir=folder) as spill,
            contextlib.closing(EventEngine(*types, windows, histories, memory_limit, spill)) as engine,
        ):
            rows = _add_impressions(engine, shown)
            other_events = _add_events(engine, happened, {window.behavior for window in windows})
            same_impressions, counts = engine.count_same_impressions(), engine.join()
            labelled = _write(folder, impressions, engine.columns(), windows, rows)
        report = JoinReport(rows, same_impressions, labelled, counts, other_events)
        storage.write_text(storage.join(folder, "_join.json"), json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    return report


def _check_new_columns(impressions: TableFiles, windows: Sequence[Window], histories: Sequence[History]) -> None:
    known = impressions.dataset().schema.names
    names = [*(window.behavior for window in windows), *(history.column for history in histories)]
    for i, name in enumerate(names):
        if name in known or name in names[:i]:
            raise UsageError(
                f"--window, --history: expected names of new columns, got {name!r}, which is there already; rename that one"
            )


def _add_impressions(engine: EventEngine, table: EventTable) -> int:
    """Gives the engine all impressions, numbered in their order, and returns how many there are."""
    rows = 0
    with Progress("read impressions", None) as progress:
        for keys in table.batches():
            size = len(keys[0])
            ids = pa.array(np.arange(rows, rows + size))
            engine.add_impressions(pa.RecordBatch.from_arrays([ids, *keys], ["id", "user", "item", "time"]))
            rows += size
            progress.advance(size)
    if not rows:
        raise DataError(f"{table.files.path}: expected impressions, got none; check --impressions")
    return rows


def _add_events(engine: EventEngine, table: EventTable, labels: set[str]) -> dict[str, int]:
    """Gives the engine the events of its behaviors, and returns {behavior: events} of those that are no label."""
    known = pa.array(engine.behaviors, pa.string())
    others: collections.Counter[str] = collections.Counter()
    with Progress("read events", None) as progress:
        for *keys, behavior in table.batches():
            found = pc.value_counts(behavior).to_pylist()
            others.update({count["values"]: count["counts"] for count in found if count["values"] not in labels})
            places = pc.index_in(behavior, value_set=known)
            batch = pa.RecordBatch.from_arrays([*keys, places], ["user", "item", "time", "behavior"])
            engine.add_events(batch.filter(pc.is_valid(places)))
            progress.advance(len(behavior))
    return dict(sorted(others.items()))


def _write(
    folder: str, impressions: TableFiles, columns: Iterator[pa.RecordBatch], windows: Sequence[Window], rows: int
) -> dict[str, int]:
    """Writes the impressions with new columns, and returns {behavior: impressions that have it}."""
    labelled = {window.behavior: 0 for window in windows}
    aligned = _Aligned(columns, rows, impressions.path)
    with Progress("write impressions", rows) as progress:
        files = itertools.groupby(impressions.batches(), key=lambda batch: batch.file)
        for number, (_, batches) in enumerate(files):
            joined = (_joined(batch.rows, aligned.take(batch.rows.num_rows)) for batch in batches)
            first = next(joined)
            path = storage.join(folder, f"part-{number:05d}.parquet")
            with pq.ParquetWriter(path, first.schema, compression="zstd") as file:
                for table in itertools.chain([first], joined):
                    file.write_table(table)
                    progress.advance(table.num_rows)
                    for name in labelled:
                        labelled[name] += pc.sum(table.column(name)).as_py() or 0
    aligned.check_end()
    return labelled


class _Aligned:
    """Rows of batches, taken in other numbers than they come in; `rows` in all, for the impressions of `path`."""

    def __init__(self, batches: Iterator[pa.RecordBatch], rows: int, path: str) -> None:
        self._batches, self._left, self._path = batches, rows, path
        self._waiting = pa.Table.from_batches([next(batches)])

    def take(self, rows: int) -> pa.Table:
        """Returns the next rows."""
        self._left -= rows
        if self._left < 0:
            raise self._changed()
        parts = [self._waiting]
        while sum(part.num_rows for part in parts) < rows:
            parts.append(pa.Table.from_batches([next(self._batches)]))
        table = pa.concat_tables(parts)
        self._waiting = table.slice(rows)
        return table.slice(0, rows)

    def check_end(self) -> None:
        """Checks that all rows were taken."""
        if self._left:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            f"{self._path}: expected the impressions to stay as they are during the join, but their number changed; join them "
            "again once they are written"
        )


def _joined(rows: pa.RecordBatch, columns: pa.Table) -> pa.Table:
    return pa.table([*rows.columns, *columns.columns], names=[*rows.schema.names, *columns.column_names])


def join_table(report: JoinReport) -> str:
    """Returns the report as lines of text."""
    heads = ("labelled", "joined", "late", "no impression", "duplicates")
    lines = [f"{'behavior':<16}" + "".join(f"{head:>15}" for head in heads)]
    for behavior, counts in report.events.items():
        figures = (report.labelled[behavior], *dataclasses.astuple(counts))
        lines.append(f"{behavior:<16}" + "".join(f"{figure:>15,}" for figure in figures))
    for behavior, events in report.other_events.items():
        lines.append(f"{events:,} events of {behavior!r}, which has no window")
    if report.same_impressions:
        lines.append(
            f"{report.same_impressions:,} impressions at the time of a later one of their user and item in the log"
        )
    return "\n".join(lines)
