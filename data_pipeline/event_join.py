"""Impressions and behavior events in separate tables become labelled impressions; docs/event_join.md."""

import collections
import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.event_engine import EventCounts, EventEngine, History, Window, joined_behaviors
from data_pipeline.event_tables import EventTable, key_types
from data_pipeline.joined_files import NewColumns, write_joined
from hm3_tf.errors import DataError, UsageError, did_you_mean
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


@dataclasses.dataclass(frozen=True)
class EventJoin:
    """What is joined, and what becomes of it.

    An event belongs to the last impression of its user and item at or before it, if the window of its behavior reaches it.
    A history has the items of the user's events before the impression, whatever they belong to; events at its
    very time are not among them.

    Attributes:
      impressions: User, item, time, and other columns, all of which are kept.
      events: User, item, time and behavior.
      windows: The labels, columns of int64 0 or 1 named as the behaviors.
      histories: Columns `<behavior>_history`: lists of items, the latest first; equal events are one.
      of_part: Whether the events are those of a part of a log, in which a behavior may never occur.
    """

    impressions: EventTable
    events: EventTable
    windows: tuple[Window, ...]
    histories: tuple[History, ...]
    of_part: bool = False

    def check(self, output: str) -> None:
        """Checks all that can be known before rows are read.

        Args:
          output: Folder to write.

        Raises:
          DataError: A column is missing or of a wrong type, or those of the two tables do not fit.
          UsageError: Times are integers of no named unit, a new column has the name of one that is there, all events are
            among the impressions, or the output is within one of the tables or not on this machine.
        """
        if storage.is_remote(output):
            raise UsageError(f"--output: expected a folder of this machine, got {output!r}; copy it once it is there")
        key_types(self.impressions, self.events)
        self._check_new_columns()
        self._check_paths(output)

    def _check_new_columns(self) -> None:
        known = self.impressions.files.dataset().schema.names
        names = [*(window.behavior for window in self.windows), *(history.column for history in self.histories)]
        for i, name in enumerate(names):
            if name in known or name in names[:i]:
                raise UsageError(
                    f"--window, --history: expected names of new columns, got {name!r}, which is there already; rename that one"
                )

    def _check_paths(self, output: str) -> None:
        shown, happened = self.impressions.files, self.events.files
        if set(happened.dataset().files) <= set(shown.dataset().files):
            raise UsageError(
                f"--impressions: expected files beside those of --events, got {happened.path} in {shown.path}"
            )
        for flag, files in {"--impressions": shown, "--events": happened}.items():
            if storage.absolute(output).startswith(storage.absolute(files.path) + "/"):
                raise UsageError(
                    f"--output: expected a folder outside of {flag}, which would have it as rows of its own the next time, got "
                    f"{output}"
                )

    def of_files(self, *, impressions: int | None = None, events: int | None = None) -> "EventJoin":
        """Returns the same with the rows of one file of a table; by the file's number, None for all."""
        shown, happened = (
            table if file is None else dataclasses.replace(table, files=table.files.each()[file])
            for table, file in ((self.impressions, impressions), (self.events, events))
        )
        return dataclasses.replace(self, impressions=shown, events=happened)

    def engine(self, memory_limit: str, spill: str, threads: int | None = None) -> EventEngine:
        """Returns an engine for it; the arguments are those of `EventEngine`."""
        types = key_types(self.impressions, self.events)
        return EventEngine(*types, self.windows, self.histories, memory_limit, spill, threads)

    def impression_keys(self, first_id: int = 0) -> Iterator[pa.RecordBatch]:
        """Yields what an engine needs of the impressions, which are numbered in their order from `first_id`.

        Raises:
          DataError: See `EventTable.batches`.
        """
        for keys in self.impressions.batches():
            ids = pa.array(np.arange(first_id, first_id + len(keys[0])))
            first_id += len(ids)
            yield pa.RecordBatch.from_arrays([ids, *keys], ["id", "user", "item", "time"])

    def event_keys(self, seen: collections.Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yields what an engine needs of the events.

        Args:
          seen: {behavior: events}, to which all are added; those of no window and no history are not yielded.

        Raises:
          DataError: See `EventTable.batches`.
        """
        known = pa.array(joined_behaviors(self.windows, self.histories), pa.string())
        for *keys, behavior in self.events.batches():
            seen.update({count["values"]: count["counts"] for count in pc.value_counts(behavior).to_pylist()})
            places = pc.index_in(behavior, value_set=known)
            batch = pa.RecordBatch.from_arrays([*keys, places], ["user", "item", "time", "behavior"])
            yield batch.filter(pc.is_valid(places))

    def joined_schema(self) -> pa.Schema:
        """Returns the columns of the output: those of the impressions, the labels and the histories."""
        _, item = key_types(self.impressions, self.events)
        labels = [pa.field(window.behavior, pa.int64()) for window in self.windows]
        histories = [pa.field(history.column, pa.list_(item)) for history in self.histories]
        return pa.schema([*self.impressions.files.dataset().schema, *labels, *histories])

    def require_rows(self, impressions: int) -> None:
        """Checks that there are impressions.

        Raises:
          DataError: There are none.
        """
        if not impressions:
            raise DataError(f"{self.impressions.files.path}: expected impressions, got none; check --impressions")

    def require_behaviors(self, seen: Mapping[str, int]) -> None:
        """Checks that each behavior of a window or history occurs among the events of a whole log.

        Args:
          seen: {behavior: events}.

        Raises:
          DataError: One does not: it is misspelt, or its column would be empty.
        """
        wanted = [("--window", window.behavior) for window in self.windows]
        wanted += [("--history", history.behavior) for history in self.histories]
        for flag, behavior in () if self.of_part else wanted:
            if behavior not in seen:
                raise DataError(
                    f"{self.events.files.path}: expected events of the behavior {behavior!r} of {flag}, found none; "
                    f"{did_you_mean(behavior, seen)}"
                )

    def without_window(self, seen: Mapping[str, int]) -> dict[str, int]:
        """Returns {behavior: events} of those that are no label."""
        labels = {window.behavior for window in self.windows}
        return {behavior: count for behavior, count in sorted(seen.items()) if behavior not in labels}

    def count_labels(self, rows: pa.Table) -> dict[str, int]:
        """Returns {behavior: rows that have it}."""
        return {window.behavior: pc.sum(rows.column(window.behavior)).as_py() for window in self.windows}


def join_events(join: EventJoin, output: str, memory_limit: str) -> JoinReport:
    """Writes impressions with their labels and histories as Parquet, a file for each of theirs, in the order of the log.

    Args:
      join: What is joined.
      output: Folder to write, new or empty; it appears when complete, with the report as `_join.json`.
      memory_limit: What DuckDB may hold in memory, as `2GiB`; beyond it, it writes to disk beside `output`.

    Returns:
      What was found.

    Raises:
      DataError: See `EventJoin.check`; or a value is missing, a file cannot be read, there are no impressions, or no events
        of a behavior.
      Hm3Error: Memory or disk does not suffice, or the folder cannot be written.
      UsageError: See `EventJoin.check`; or the memory limit is no size.
    """
    join.check(output)
    rows, seen = 0, collections.Counter[str]()
    with storage.staged_folder(output) as folder:
        with (
            tempfile.TemporaryDirectory(prefix="spill-", dir=folder) as spill,
            contextlib.closing(join.engine(memory_limit, spill)) as engine,
        ):
            with Progress("read impressions", None) as progress:
                for keys in join.impression_keys():
                    engine.add_impressions(keys)
                    rows += keys.num_rows
                    progress.advance(keys.num_rows)
            join.require_rows(rows)
            with Progress("read events", None) as progress:
                for keys in join.event_keys(seen):
                    engine.add_events(keys)
                    progress.advance(keys.num_rows)
            join.require_behaviors(seen)
            same_impressions, counts = engine.count_same_impressions(), engine.join()
            labelled = _write(join, folder, engine.columns(), rows)
        report = JoinReport(rows, same_impressions, labelled, counts, join.without_window(seen))
        write_report(folder, report)
    return report


def _write(join: EventJoin, folder: str, columns: Iterator[pa.RecordBatch], rows: int) -> dict[str, int]:
    """Writes the impressions with new columns, and returns {behavior: impressions that have it}."""
    files, schema = join.impressions.files, join.joined_schema()
    new_columns = NewColumns(columns, files.path)
    labelled = collections.Counter[str]()
    with Progress("write impressions", rows) as progress:
        for number, part in enumerate(files.each()):
            path = storage.join(folder, part_name(number))
            for table in write_joined(path, part, new_columns, schema):
                labelled.update(join.count_labels(table))
                progress.advance(table.num_rows)
    new_columns.check_end()
    return dict(labelled)


def part_name(number: int) -> str:
    """Returns the name of the output for the impressions' file of this number."""
    return f"part-{number:05d}.parquet"


def write_report(folder: str, report: JoinReport) -> None:
    """Writes the report beside the files of the output."""
    storage.write_text(storage.join(folder, "_join.json"), json.dumps(dataclasses.asdict(report), indent=1) + "\n")


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
