"""When the rows of a log were: the times in a column, whatever they are written as."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.schema import SCALAR, Column, Schema
from hm3_tf.errors import UsageError

DAY = 86_400_000  # ms
TIME_COLUMNS = ("date", "date_", "day", "dt", "timestamp", "event_time", "time", "ts", "ts_hour", "time_ms", "datetime")
_STAMP = re.compile(r"(.*_)?(time|timestamp|ts|date|datetime)(_(s|ms|us|ns))?")
_WRITTEN = re.compile(r"(\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d){0,2})?)(?:\.\d+)?\s*(?:Z|UTC|GMT|([+-])(\d\d):?(\d\d)?)?")
_FIRST_YEAR, _END_YEAR = 1990, 2100  # numbers outside are durations, counts, "never"
_FIRST, _END = 631_152_000_000, 4_102_444_800_000  # ms
_UNITS = ((1000, 1), (1, 1), (1, 10**3), (1, 10**6))  # s, ms, us, ns: a factor and a divisor to ms
_MOST_DAYS = 10**5


@dataclasses.dataclass(frozen=True)
class Clock:
    """What says when each row was.

    Attributes:
      column: The column.
      numbered: Whether its numbers below 100,000 are days; else they are no times.
    """

    column: Column
    numbered: bool = False

    def times(self, values: np.ndarray) -> "Times":
        """Returns the times of rows by the column's values, see `Times.of`."""
        return Times.of(values, self.numbered)


def likely_clocks(columns: Iterable[Column]) -> list[Clock]:
    """Returns the columns whose names are those of `TIME_COLUMNS`, in their order; their values tell whether they are times."""
    found = {column.name: column for column in columns if _may_hold_times(column)}
    return [Clock(found[known]) for known in TIME_COLUMNS if known in found]


def named_clock(schema: Schema, name: str) -> Clock:
    """Returns the column that a person named: it may number the days.

    Raises:
      UsageError: The column is not one of times.
      ConfigError: There is none of that name.
    """
    column = schema.column(name, "--time_column")
    if not _may_hold_times(column):
        raise UsageError(
            f"--time_column: expected a column of one int64 or string a row, got {name!r} of dtype {column.dtype} and shape "
            f"{list(column.shape)}; name a column of dates or timestamps"
        )
    return Clock(column, numbered=True)


def stamps(schema: Schema, clock: Clock | None) -> tuple[Column, ...]:
    """Returns the inputs whose names say that they hold times, other than the column of the rows' own."""
    own = clock.column if clock else None
    return tuple(c for c in schema.inputs if c != own and _may_hold_times(c) and _STAMP.fullmatch(c.name.lower()))


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
    def of(cls, values: np.ndarray, numbered: bool = False) -> "Times":
        """Returns the times of int64 or bytes [rows].

        Numbers are read by their size: dates as 20220502, or seconds, milli-, micro- or nanoseconds since 1970; those outside
        1990 to 2099 are no times. Text is such a number, or a date or time as 2022-05-02, 2022-05-02 10:30:00 or
        2022-05-02T10:30:00+08:00; without an offset it is UTC.

        Args:
          values: The values.
          numbered: Whether numbers below 100,000 are days.
        """
        if values.dtype == np.int64:
            return cls(_from_numbers(values, numbered))
        texts = values.tolist()
        known = {text: _from_text(text, numbered) for text in set(texts)}
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
        """Returns where a time is later than another, bool [rows].

        Where all of the others are whole days, each is the end of its day. Where these or the times are, a day is let pass:
        dates are of some time zone, which nobody told.
        """
        known = self.known & other.known & (other.ms >= _FIRST)
        dates, other_dates = (bool(np.all(each.ms[known] % DAY == 0)) for each in (self, other))
        slack = (DAY if dates or other_dates else 0) + (DAY - 1 if other_dates else 0)
        return known & (self.ms > np.where(known, other.ms, 0) + slack)


def day_name(day: int) -> str:
    """Returns a day as 2022-05-02, or as its number in a log that numbers its days."""
    return str(np.datetime64(day, "D")) if day * DAY >= _FIRST else f"day {day}"


def _from_numbers(values: np.ndarray, numbered: bool) -> np.ndarray:
    ms = np.full(values.shape, MISSING_INT64)
    if numbered:
        small = (values >= 0) & (values < _MOST_DAYS)
        ms[small] = values[small] * DAY
    years, months, days = values // 10_000, values // 100 % 100, values % 100
    dated = (years >= _FIRST_YEAR) & (years < _END_YEAR) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)
    first = ((years[dated] - 1970) * 12 + months[dated] - 1).astype("datetime64[M]").astype("datetime64[D]")
    ms[dated] = (first.astype(np.int64) + days[dated] - 1) * DAY
    for factor, divisor in _UNITS:
        counted = (values >= _FIRST * divisor // factor) & (values < _END * divisor // factor)
        ms[counted] = values[counted] * factor // divisor
    return ms


def _from_text(text: bytes, numbered: bool) -> int:
    if text.isdigit():
        return int(_from_numbers(np.array([min(int(text[:20]), 2**63 - 1)]), numbered)[0])
    written = _WRITTEN.fullmatch(text.decode(errors="replace"))
    if not written:
        return MISSING_INT64
    time, sign, hours, minutes = written.groups()
    try:
        local = int(np.datetime64(time, "ms").astype(np.int64))
    except ValueError:
        return MISSING_INT64
    offset = (60 * int(hours or 0) + int(minutes or 0)) * 60_000
    ms = local + offset if sign == "-" else local - offset
    return ms if _FIRST <= ms < _END else MISSING_INT64
