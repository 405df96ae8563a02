"""All that validation counts of a split, in memory that does not grow with its rows."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline.folder import check_records, explained_read_errors
from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.index import SplitIndex
from data_pipeline.read import Reader, read_records
from data_pipeline.records import PARSERS
from data_pipeline.schema import VARIABLE, Column, Schema
from data_pipeline.statistics import SplitStatistics, StatisticsBuilder
from data_pipeline.times import Times
from data_pipeline.validate_clock import Clock, likely_clocks, stamps
from data_pipeline.validate_sketches import (
    CategoryCounts,
    DayCounts,
    OrderCounts,
    Rows,
    RowSample,
    fingerprints,
    row_fingerprints,
)
from hm3_tf.errors import DataError

_BLOCKS_TOGETHER = 16


class Profile:
    """What is counted of a split.

    Args:
      schema: Its columns and levels.
      read: The columns that are read, see `read_columns`.
      clock: What says when each row was, or None.
      train: Profile of the training split, with which others are compared; None for its own.

    Attributes:
      clock: As given.
      labels: Names of the labels: the levels, and the behaviors of levels that have several.
      happened: Rows on which each label happened.
      columns: {input: its counts}.
      missing_labels: Missing values of each behavior column.
      late: Rows on which each column of times is later than the row.
      stamped, filled: Rows on which it has a time, and on which it has a value other than 0.
      sample: The rows by their fingerprints.
      groups: {group column: the rows that have a value by its fingerprint}.
      days: Rows and labels a day.
      newest: Time of the latest row, ms since 1970, or None where no time is known.
      older: Rows older than the newest one of the training split.
      rows: Number of rows.
    """

    def __init__(
        self, schema: Schema, read: Sequence[Column], clock: Clock | None = None, train: "Profile | None" = None
    ) -> None:
        self.clock = clock
        self._schema, self._read, self._train = schema, read, train
        several = [level for level in schema.levels if len(level.any_of) > 1]
        self.labels = (
            *(level.name for level in schema.levels),
            *(name for level in several for name in label_rules.behavior_names(level)),
        )
        self._several = several
        self._statistics = StatisticsBuilder(schema)
        told = 0 if train else len(self.labels)  # by columns of other splits no label is told
        before: dict[str, Any] = train.columns if train else {}
        self.columns: dict[str, Any] = {
            column.name: OrderCounts(told, before.get(column.name))
            if column.dtype == "float"
            else CategoryCounts(told, before.get(column.name))
            for column in schema.inputs
        }
        self.happened: Counter[str] = Counter()
        self.missing_labels: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.stamped: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.sample, self.days = RowSample(), DayCounts()
        self.groups = {column.name: RowSample() for column in schema.with_role("group")}
        self.newest: int | None = None
        self.older = self.rows = 0

    def update(self, columns: Mapping[str, np.ndarray], day: str = "") -> None:
        """Adds rows.

        Args:
          columns: {column: values [rows] or [rows, n]} of all columns that are read.
          day: Their day as 2022-05-02 where no column says when they were.
        """
        levels = self._schema.levels
        nested, violations = label_rules.nest(levels, label_rules.raw_flags(levels, columns))
        with np.errstate(invalid="ignore"):  # infinite numbers are a finding
            self._statistics.add_rows(columns, nested)
        self._statistics.add_violations(violations)
        labels = dict(nested)
        for level in self._several:
            labels |= label_rules.split(level, columns, nested[level.name])
        stacked = np.stack([labels[name] for name in self.labels])
        self.happened.update(dict(zip(self.labels, stacked.sum(axis=1).tolist())))
        rows = Rows.of(stacked[:0] if self._train else stacked, self.rows)
        hashes = {column.name: fingerprints(columns[column.name]) for column in self._read}
        for name, counts in self.columns.items():
            counts.update(columns[name], hashes[name], rows)
        self._count_missing_labels(columns)
        self.sample.update(row_fingerprints(hashes.values()))
        for name, groups in self.groups.items():
            groups.update(hashes[name][_present(columns[name])])
        if self.clock:
            self._count_times(self.clock.times(columns[self.clock.column.name]), columns, stacked[: len(levels)])
        elif day:
            self._count_times(Times.of(np.full(stacked.shape[1], day.encode())), columns, stacked[: len(levels)])
        self.rows += stacked.shape[1]

    def _count_missing_labels(self, columns: Mapping[str, np.ndarray]) -> None:
        for name in {name for level in self._schema.levels for name in level.any_of}:
            values = columns[name]
            missing = np.isnan(values) if values.dtype.kind == "f" else values == MISSING_INT64
            self.missing_labels[name] += int(np.count_nonzero(missing))

    def _count_times(self, times: Times, columns: Mapping[str, np.ndarray], levels: np.ndarray) -> None:
        for column in stamps(self._schema, self.clock):
            values = columns[column.name]
            stamp = Times.of(values)
            self.filled[column.name] += int(np.count_nonzero(_present(values) & (values != 0)))
            self.late[column.name] += int(np.count_nonzero(stamp.after(times)))
            self.stamped[column.name] += int(np.count_nonzero(stamp.known))
        known = times.ms[times.known]
        if not len(known):
            return
        self.days.update(times.days[times.known], levels[:, times.known])
        newest = int(known.max())
        self.newest = newest if self.newest is None else max(self.newest, newest)
        if self._train and self._train.newest is not None:
            self.older += int(np.count_nonzero(known < self._train.newest))

    def statistics(self) -> SplitStatistics:
        """Returns the statistics of the rows."""
        return self._statistics.result()


def _present(values: np.ndarray) -> np.ndarray:
    """Returns where int64 or bytes are not missing: bool of the same shape."""
    return values != (MISSING_INT64 if values.dtype == np.int64 else MISSING_STRING)


def read_columns(index: SplitIndex, schema: Schema) -> tuple[Column, ...]:
    """Returns the columns that are validated: all but the simulator's truth, and ignored ones only where records have them.

    Raises:
      DataError: A column that is not ignored is in none of the records looked at, or is of another dtype.
    """
    needed = tuple(column.name for column in schema.columns if column.role not in ("ignored", "truth"))
    found = check_records(Reader(index, schema, (), carry=needed))
    ignored = [
        column.name
        for column in schema.with_role("ignored")
        if column.shape != VARIABLE and found.get(column.name, ("",))[0] == column.dtype
    ]
    return tuple(column for column in schema.columns if column.name in {*needed, *ignored})


def read_rows(
    index: SplitIndex, columns: Sequence[Column], texts: Collection[str] = ()
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of a split in order, some 16,384 at a time.

    Args:
      index: The split.
      columns: The columns to read.
      texts: Those of dtype `string` that are not hashed.

    Yields:
      {column: its dtype, [rows] or [rows, n]}; of strings a fingerprint, int64, missing ones as those of int64.

    Raises:
      DataError: A shard is corrupt, or its records do not hold what the schema says.
    """
    hashed = frozenset(column.name for column in columns if column.dtype == "string" and column.name not in texts)
    decode = _decoder(index.record_format, tuple(columns), hashed)
    files = tf.constant(index.files)
    with explained_read_errors(index):
        for start in range(0, len(index.blocks), _BLOCKS_TOGETHER):
            with tf.device("CPU"):  # as within a dataset
                rows = decode(files, tf.constant(index.blocks[start : start + _BLOCKS_TOGETHER]))
            yield {name: values.numpy() for name, values in rows.items()}


@functools.lru_cache(maxsize=8)
def _decoder(record_format: str, columns: tuple[Column, ...], hashed: frozenset[str]) -> Callable:
    """Returns what reads blocks; it is traced once, which takes as long as the reading of 50,000 rows."""

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 4], tf.int64)], autograph=False
    )
    def decode(files: tf.Tensor, blocks: tf.Tensor) -> dict[str, tf.Tensor]:
        values = PARSERS[record_format](read_records(files, blocks), columns)
        return values | {name: _fingerprint(values[name]) for name in hashed}

    return decode


def _fingerprint(texts: tf.Tensor) -> tf.Tensor:
    """Returns a hash of each string, int64 of the same shape."""
    hashes = tf.strings.to_hash_bucket_fast(texts, 2**63 - 1)
    return tf.where(tf.equal(texts, MISSING_STRING), MISSING_INT64, hashes)


def _guessed_clock(index: SplitIndex, read: Sequence[Column]) -> Clock | None:
    """Returns the first of the likely clocks among the columns whose first values are times."""
    likely = likely_clocks(read)
    names = [clock.column.name for clock in likely]
    first = dataclasses.replace(index, blocks=index.blocks[:1])
    rows = next(read_rows(first, [clock.column for clock in likely], names), {}) if likely else {}
    return next((clock for clock in likely if rows and clock.times(rows[clock.column.name]).known.mean() > 0.5), None)


def profile(
    index: SplitIndex,
    schema: Schema,
    clock: Clock | None = None,
    train: Profile | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Profile:
    """Returns the profile of a split, or of a part of one, which is read once.

    Args:
      index: The split.
      schema: Its columns and levels.
      clock: What says when each row was; default that of the training split, or for its own one of `TIME_COLUMNS` that holds
        times.
      train: Profile of the training split, with which others are compared; None for its own.
      on_rows: Called with the number of rows that were read since.

    Raises:
      DataError: A shard is corrupt, or its records do not hold what the schema says.
    """
    read = read_columns(index, schema)
    if clock is None:
        clock = train.clock if train else _guessed_clock(index, read)
    if clock and clock.column not in read:
        clock = None
    times = {column.name for column in stamps(schema, clock)} | ({clock.column.name} if clock else set())
    result = Profile(schema, read, clock, train)
    for day, part in ({"": index} if clock else _dated_parts(index)).items():
        for columns in read_rows(part, read, times):
            before = result.rows
            result.update(columns, day)
            on_rows(result.rows - before)
    return result


def _dated_parts(index: SplitIndex) -> dict[str, SplitIndex]:
    """Returns the part of each day where the shards are named by days, else the whole."""
    try:
        return index.by_day()
    except DataError:
        return {"": index}
