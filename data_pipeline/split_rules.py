"""The split and the day of each row of a raw log."""

import dataclasses
import datetime
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from data_pipeline.hashing import fingerprint
from data_pipeline.times import Times
from hm3_tf.errors import DataError, UsageError, did_you_mean

SPLITS = ("train", "validation", "test")
LEFT_OUT = len(SPLITS)
"""What a rule gives rows that are in no split."""

_SPLIT_STREAM = 1  # keys the draw of splits, which must not follow draws that made the log from the same seed


class SplitRule(Protocol):
    """Gives each row its split."""

    @property
    def by_row_number(self) -> bool:
        """Whether the split of a row depends on its number in the log."""
        ...

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns int [rows], places in `SPLITS` or `LEFT_OUT`, for the rows of the log from number `first_row` on."""
        ...


DayRule = Callable[[pa.RecordBatch], np.ndarray]
"""Returns the day of each row: datetime64[D] [rows]."""


@dataclasses.dataclass(frozen=True)
class FractionRule:
    """Draws a split for each row.

    Attributes:
      fractions: Shares of train, validation and test.
      seed: Seed of the draws, of which each row of the log has its own.
    """

    fractions: tuple[float, float, float]
    seed: int

    by_row_number = True

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns the splits, see `SplitRule`."""
        draws = np.random.Generator(np.random.PCG64([self.seed, _SPLIT_STREAM]).advance(first_row))
        return np.searchsorted(np.cumsum(self.fractions)[:-1], draws.random(rows.num_rows), side="right")


@dataclasses.dataclass(frozen=True)
class GroupRule:
    """Draws a split for each value of a column, so that all rows of a user, search or session are in one.

    Attributes:
      column: Name of the column, of integers or text.
      fractions: Shares of train, validation and test, of the values.
      seed: Seed of the draws; the draw of a value is the same wherever it stands.
    """

    column: str
    fractions: tuple[float, float, float]
    seed: int

    by_row_number = False

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns the splits, see `SplitRule`.

        Raises:
          DataError: The column is missing, lacks a value, or holds neither integers nor text.
        """
        hashes = fingerprint(_keys(rows, self.column), salt=f"split {self.seed}").numpy()
        return np.searchsorted(np.cumsum(self.fractions)[:-1], hashes / 2.0**64, side="right")


@dataclasses.dataclass(frozen=True)
class ColumnRule:
    """Splits by a column that names the split of each row: train, validation or test.

    Attributes:
      column: Name of the column.
    """

    column: str

    by_row_number = False

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns the splits, see `SplitRule`.

        Raises:
          DataError: The column is missing, lacks a value, or names no split.
        """
        values = _present(rows, self.column, "--split")
        places = pc.index_in(pc.cast(values, pa.string()), value_set=pa.array(SPLITS))
        if places.null_count:
            got = values[pc.index(places.is_null(), True).as_py()].as_py()
            raise DataError(
                f"--split: expected one of {', '.join(SPLITS)} in column {self.column!r}, got {got!r}; see --split_column"
            )
        return places.to_numpy()


@dataclasses.dataclass(frozen=True)
class ThresholdRule:
    """Splits by a column that orders the rows: validation from the first value, test from the second.

    Attributes:
      column: Name of the column; where the values are dates, it holds dates as `_dates` reads them.
      validation: First value of the validation split.
      test: First value of the test split.
      end: First value that is left out, whose labels may still come; None: none is.
    """

    column: str
    validation: object
    test: object
    end: object = None

    by_row_number = False

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns the splits, see `SplitRule`.

        Raises:
          DataError: The column is missing or cannot be compared.
        """
        dated = isinstance(self.validation, np.datetime64)
        column = self.column
        ordered = _dates(rows, column, "--split") if dated else _present(rows, column, "--split").to_numpy()
        splits = (ordered >= self.validation).astype(np.int64) + (ordered >= self.test)
        return splits if self.end is None else np.where(ordered >= self.end, LEFT_OUT, splits)


@dataclasses.dataclass(frozen=True)
class DateColumn:
    """Reads the day of each row.

    Attributes:
      column: Name of the column, which holds dates as `ThresholdRule` takes them.
    """

    column: str

    def __call__(self, rows: pa.RecordBatch) -> np.ndarray:
        """Returns the days: datetime64[D] [rows].

        Raises:
          DataError: The column is missing or holds no date.
        """
        return _dates(rows, self.column, "--shard_by_day")


def _present(rows: pa.RecordBatch, column: str, flag: str) -> pa.Array:
    """Returns a column that has a value in every row."""
    if column not in rows.schema.names:
        known = rows.schema.names
        raise DataError(
            f"{flag}: expected the column {column!r} to split by, found none; {did_you_mean(column, known)}; "
            "see --split_column"
        )
    values = rows.column(column)
    if values.null_count:
        raise DataError(f"{flag}: expected a value of column {column!r} in every row, got {values.null_count} missing")
    return values


def _keys(rows: pa.RecordBatch, column: str) -> tf.Tensor:
    values = _present(rows, column, "--split")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_uint64(values.type):
        values = values.view(pa.int64())
    try:
        if pa.types.is_integer(values.type):
            return tf.constant(pc.cast(values, pa.int64()).to_numpy())
        return tf.constant(pc.cast(values, pa.binary()).to_numpy(zero_copy_only=False), tf.string)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"--split: expected integers or text in column {column!r} to keep its rows together, got {values.type}; "
            "see --split_column"
        ) from error


def _dates(rows: pa.RecordBatch, column: str, flag: str) -> np.ndarray:
    """Returns the days of a column of dates, times, or numbers and texts of them, in UTC: datetime64[D] [rows]."""
    values = _present(rows, column, flag)
    try:
        if pa.types.is_integer(values.type):
            return _numbered_dates(pc.cast(values, pa.int64()).to_numpy())
        if not pa.types.is_temporal(values.type):
            text = pc.cast(values, pa.string())
            if pc.all(pc.match_substring_regex(text, r"^\d+$")).as_py():
                return _numbered_dates(pc.cast(text, pa.int64()).to_numpy())
            values = pc.cast(pc.utf8_slice_codeunits(text, 0, 10), pa.date32())
        return pc.cast(values, pa.date32()).to_numpy(zero_copy_only=False).astype("datetime64[D]")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{flag}: expected dates in column {column!r}, as 20220502, 2022-05-02, seconds, milli-, micro- or nanoseconds "
            f"since 1970, or of a date or time type, got: {error}; see --split_column"
        ) from error


def _numbered_dates(values: np.ndarray) -> np.ndarray:
    times = Times.of(values)
    if not times.known.all():
        raise pa.ArrowInvalid(f"{values[np.argmin(times.known)]}, which is none")
    return times.days.astype("datetime64[D]")


def _day(text: str) -> np.datetime64:
    """Returns the day of a flag, as 2022-05-02 or 20220502; raises ValueError where it is none."""
    return np.datetime64(datetime.datetime.strptime(text.replace("-", ""), "%Y%m%d"), "D")


def parse_split(text: str, column: str, seed: int) -> SplitRule:
    """Returns the rule of `--split`.

    Args:
      text: `date:2022-05-02,2022-05-03` (validation from the first, test from the second; rows from a third on are left
        out), `fraction:0.8,0.1,0.1`, `groups:0.8,0.1,0.1` (all rows of a value of the column in one split), or `column`
        (the column names the split).
      column: The column of dates, groups or names.
      seed: Seed of the fractions.

    Returns:
      The rule.

    Raises:
      UsageError: The text is none of these.
    """
    kind, _, values = text.partition(":")
    parts = values.split(",")
    try:
        if text == "column":
            return ColumnRule(column)
        if kind == "date" and len(parts) in (2, 3):
            days = [_day(part.strip()) for part in parts]
            if days == sorted(days):
                return ThresholdRule(column, *days)
        if kind in ("fraction", "groups") and len(parts) == 3:
            train, validation, test = (float(part) for part in parts)
            if min(train, validation, test) >= 0 and abs(train + validation + test - 1) < 1e-6:
                fractions = (train, validation, test)
                return FractionRule(fractions, seed) if kind == "fraction" else GroupRule(column, fractions, seed)
    except ValueError:
        pass
    raise UsageError(
        "--split: expected date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY (and ,FIRST_DAY_LEFT_OUT), fraction:TRAIN,VALIDATION,TEST "
        f"or groups:TRAIN,VALIDATION,TEST (of sum 1), or column, got {text!r}"
    )
