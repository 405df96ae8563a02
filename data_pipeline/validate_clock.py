"""When the rows of a log were: the times in a column, whatever they are written as."""

import dataclasses
import re

import numpy as np

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.schema import SCALAR, Column, Schema
from hm3_tf.errors import UsageError

DAY = 86_400_000  # ms
TIME_COLUMNS = ("date", "date_", "day", "dt", "timestamp", "event_time", "time", "ts", "ts_hour", "time_ms", "datetime")
_STAMP = re.compile(r"(.*_)?(time|timestamp|ts|date|datetime)(_(s|ms|us|ns))?")
_UNITS = ((10**9, 10**11, 1000, 1), (10**11, 10**14, 1, 1), (10**14, 10**17, 1, 10**3), (10**17, 2**62, 1, 10**6))
_CALENDAR = 1_000 * DAY  # days before it are numbers of days: no log is from 1972


def time_column(schema: Schema, name: str | None = None) -> Column | None:
    """Returns the column that says when a row was.

    Args:
      schema: Schema of the log.
      name: Its name; default the first of `TIME_COLUMNS` that the log has.

    Raises:
      UsageError: The named column is not one of times.
      ConfigError: There is none of that name.
    """
    if name is None:
        found = {column.name: column for column in schema.columns if _may_hold_times(column)}
        return next((found[known] for known in TIME_COLUMNS if known in found), None)
    column = schema.column(name, "--time_column")
    if not _may_hold_times(column):
        raise UsageError(
            f"--time_column: expected a column of one int64 or string a row, got {name!r} of dtype {column.dtype} and shape "
            f"{list(column.shape)}; name a column of dates or timestamps"
        )
    return column


def stamps(schema: Schema, clock: Column | None) -> tuple[Column, ...]:
    """Returns the inputs whose names say that they hold times, other than the column of the rows' own."""
    return tuple(c for c in schema.inputs if c != clock and _may_hold_times(c) and _STAMP.fullmatch(c.name.lower()))


def _may_hold_times(column: Column) -> bool:
    return column.dtype != "float" and column.shape == SCALAR and column.role not in ("behavior", "weight", "truth")


@dataclasses.dataclass(frozen=True)
class Times:
    """When rows were.

    Attributes:
      ms: Milliseconds since 1970, int64 [rows]; `MISSING_INT64` where it is not known.
    """

    ms: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Times":
        """Returns the times of int64 or bytes [rows].

        Numbers are read by their size: dates as 20220502, days, or seconds, milli-, micro- or nanoseconds since 1970. Text is
        such a number, or a date or time as 2022-05-02 or 2022-05-02 10:30:00.
        """
        if values.dtype == np.int64:
            return cls(_from_numbers(values))
        texts = values.tolist()
        known = {text: _from_text(text) for text in set(texts)}
        return cls(np.array([known[text] for text in texts], np.int64))

    @property
    def known(self) -> np.ndarray:
        """Where the time is known, bool [rows]."""
        return self.ms != MISSING_INT64

    @property
    def days(self) -> np.ndarray:
        """Days since 1970, int64 [rows]."""
        return self.ms // DAY

    def after(self, other: "Times") -> np.ndarray:
        """Returns where a time is later than another, bool [rows]; the other is the end of its day where all are whole days."""
        known = self.known & other.known & (np.minimum(self.ms, other.ms) >= _CALENDAR)
        whole = bool(np.all(other.ms[known] % DAY == 0))
        return known & (self.ms > np.where(known, other.ms, 0) + (DAY - 1 if whole else 0))


def day_name(day: int) -> str:
    """Returns a day as 2022-05-02, or as its number in a log that numbers its days."""
    return str(np.datetime64(day, "D")) if day * DAY >= _CALENDAR else f"day {day}"


def _from_numbers(values: np.ndarray) -> np.ndarray:
    ms = np.full(values.shape, MISSING_INT64)
    numbered = (values >= 0) & (values < 10**5)
    ms[numbered] = values[numbered] * DAY
    dated = (values >= 1970_01_01) & (values <= 9999_12_31)
    months = ((values[dated] // 10_000 - 1970) * 12 + values[dated] // 100 % 100 - 1).astype("datetime64[M]")
    ms[dated] = (months.astype("datetime64[D]").astype(np.int64) + values[dated] % 100 - 1) * DAY
    for least, below, factor, divisor in _UNITS:
        counted = (values >= least) & (values < below)
        ms[counted] = values[counted] * factor // divisor
    return ms


def _from_text(text: bytes) -> int:
    if text.isdigit():
        return int(_from_numbers(np.array([int(text)]))[0]) if len(text) < 19 else MISSING_INT64
    try:
        return int(np.datetime64(text.decode()[:19], "ms").astype(np.int64))
    except (UnicodeDecodeError, ValueError):
        return MISSING_INT64
