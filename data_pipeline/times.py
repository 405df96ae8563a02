"""Times in a column, whatever they are written as."""

import dataclasses
import re

import numpy as np

from data_pipeline.hashing import MISSING_INT64

DAY = 86_400_000  # ms
_WRITTEN = re.compile(r"(\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d){0,2})?)(?:\.\d+)?\s*(?:Z|UTC|GMT|([+-])(\d\d):?(\d\d)?)?")
_FIRST_YEAR, _END_YEAR = 1990, 2100  # numbers outside are durations, counts, "never"
_FIRST, _END = 631_152_000_000, 4_102_444_800_000  # ms
_UNITS = ((1000, 1), (1, 1), (1, 10**3), (1, 10**6))  # s, ms, us, ns: a factor and a divisor to ms
_MOST_DAYS = 10**5


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
    dated = (years >= _FIRST_YEAR) & (years < _END_YEAR) & (months >= 1) & (months <= 12) & (days >= 1)
    month = ((years[dated] - 1970) * 12 + months[dated] - 1).astype("datetime64[M]")
    day = month.astype("datetime64[D]") + (days[dated] - 1)
    ms[dated] = np.where(day.astype("datetime64[M]") == month, day.astype(np.int64) * DAY, MISSING_INT64)
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
