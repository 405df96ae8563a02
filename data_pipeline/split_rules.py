"""The split and the day of each row of a raw log."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hm3_tf.errors import DataError, UsageError, did_you_mean

_SPLIT_STREAM = 1  # keys the draw of splits, which must not follow draws that made the log from the same seed

SplitRule = Callable[[pa.RecordBatch], np.ndarray]
DayRule = Callable[[pa.RecordBatch], np.ndarray]


def fraction_rule(fractions: tuple[float, ...], seed: int, first_row: int = 0) -> SplitRule:
    """Returns the rule that draws a split for each row: int [rows], 0 train, 1 validation, 2 test.

    Args:
      fractions: Shares of train, validation and test.
      seed: Seed of the draw, which depends on the order of the rows only.
      first_row: Number of the first row that the rule is given, from 0: the rows before it have their draws elsewhere.

    Returns:
      The rule.
    """
    draws = np.random.PCG64([seed, _SPLIT_STREAM]).advance(first_row)  # a draw a row
    generator = np.random.Generator(draws)
    bounds = np.cumsum(fractions)[:-1]
    return lambda rows: np.searchsorted(bounds, generator.random(rows.num_rows), side="right")


def threshold_rule(column: str, validation: object, test: object) -> SplitRule:
    """Returns the rule by a column that orders the rows: validation from the first value, test from the second.

    Args:
      column: Name of the column; a date as 20220502, "2022-05-02" or a date or time type, where the values are dates.
      validation: First value of the validation split.
      test: First value of the test split.

    Returns:
      The rule: int [rows], 0 train, 1 validation, 2 test.

    Raises:
      DataError: When run, the column is missing or cannot be compared.
    """

    def assign(rows: pa.RecordBatch) -> np.ndarray:
        dated = isinstance(validation, np.datetime64)
        ordered = _dates(rows, column, "--split") if dated else _present(rows, column, "--split").to_numpy()
        return (ordered >= validation).astype(np.int64) + (ordered >= test)

    return assign


def day_rule(column: str) -> DayRule:
    """Returns the rule that reads the day of each row.

    Args:
      column: Name of the column, which holds dates as `threshold_rule` takes them.

    Returns:
      The rule: datetime64[D] [rows].

    Raises:
      DataError: When run, the column is missing or holds no date.
    """
    return lambda rows: _dates(rows, column, "--shard_by_day")


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


def parse_split(text: str, column: str, seed: int, first_row: int = 0) -> SplitRule:
    """Returns the rule of `--split`.

    Args:
      text: `date:2022-05-02,2022-05-03` (validation from the first, test from the second) or `fraction:0.8,0.1,0.1`.
      column: The column of dates.
      seed: Seed of the fractions.
      first_row: Number of the first row that the rule is given, from 0.

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
                return threshold_rule(column, first, second)
        if kind == "fraction" and len(parts) == 3:
            fractions = tuple(float(part) for part in parts)
            if min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6:
                return fraction_rule(fractions, seed, first_row)
    except ValueError:
        pass
    raise UsageError(
        "--split: expected date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY or fraction:TRAIN,VALIDATION,TEST "
        f"(of sum 1), got {text!r}"
    )
