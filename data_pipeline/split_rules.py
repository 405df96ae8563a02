"""The split and the day of each row of a raw log."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hm3_tf.errors import DataError, UsageError, did_you_mean

_SPLIT_STREAM = 1  # keys the draw of splits, which must not follow draws that made the log from the same seed


class SplitRule(Protocol):
    """Gives each row its split."""

    @property
    def by_row_number(self) -> bool:
        """Whether the split of a row depends on its number in the log."""
        ...

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns int [rows], 0 train, 1 validation, 2 test, for the rows of the log from number `first_row` on."""
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
class ThresholdRule:
    """Splits by a column that orders the rows: validation from the first value, test from the second.

    Attributes:
      column: Name of the column; a date as 20220502, "2022-05-02" or a date or time type, where the values are dates.
      validation: First value of the validation split.
      test: First value of the test split.
    """

    column: str
    validation: object
    test: object

    by_row_number = False

    def __call__(self, rows: pa.RecordBatch, first_row: int = 0) -> np.ndarray:
        """Returns the splits, see `SplitRule`.

        Raises:
          DataError: The column is missing or cannot be compared.
        """
        dated = isinstance(self.validation, np.datetime64)
        column = self.column
        ordered = _dates(rows, column, "--split") if dated else _present(rows, column, "--split").to_numpy()
        return (ordered >= self.validation).astype(np.int64) + (ordered >= self.test)


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


def _dates(rows: pa.RecordBatch, column: str, flag: str) -> np.ndarray:
    values = _present(rows, column, flag)
    try:
        if not pa.types.is_temporal(values.type):
            text = pc.replace_substring_regex(pc.cast(values, pa.string()), r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3")
            values = pc.cast(pc.utf8_slice_codeunits(text, 0, 10), pa.date32())
        return pc.cast(values, pa.date32()).to_numpy(zero_copy_only=False).astype("datetime64[D]")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{flag}: expected dates in column {column!r}, as 20220502, 2022-05-02 or of a date or time type, got: {error}; "
            "see --split_column"
        ) from error


def parse_split(text: str, column: str, seed: int) -> SplitRule:
    """Returns the rule of `--split`.

    Args:
      text: `date:2022-05-02,2022-05-03` (validation from the first, test from the second) or `fraction:0.8,0.1,0.1`.
      column: The column of dates.
      seed: Seed of the fractions.

    Returns:
      The rule.

    Raises:
      UsageError: The text is neither.
    """
    kind, _, values = text.partition(":")
    parts = values.split(",")
    try:
        if kind == "date" and len(parts) == 2:
            first, second = (np.datetime64(part.strip(), "D") for part in parts)
            if first <= second:
                return ThresholdRule(column, first, second)
        if kind == "fraction" and len(parts) == 3:
            train, validation, test = (float(part) for part in parts)
            if min(train, validation, test) >= 0 and abs(train + validation + test - 1) < 1e-6:
                return FractionRule((train, validation, test), seed)
    except ValueError:
        pass
    raise UsageError(
        "--split: expected date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY or fraction:TRAIN,VALIDATION,TEST "
        f"(of sum 1), got {text!r}"
    )
