"""Times in a column, whatever they are written as."""

import dataclasses

import numpy as np

from data_pipeline.hashing import MISSING_INT64

DAY = 86_400_000  # ms
_UNITS = ((10**9, 10**11, 1000, 1), (10**11, 10**14, 1, 1), (10**14, 10**17, 1, 10**3), (10**17, 2**62, 1, 10**6))
_CALENDAR = 1_000 * DAY  # days before it are numbers of days: no log is from 1972


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
    def in_calendar(self) -> np.ndarray:
        """Where the time is known as a date, not as the number of a day in a log that numbers them, bool [rows]."""
        return self.known & (self.ms >= _CALENDAR)

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
    year, month, day = values[dated] // 10_000, values[dated] // 100 % 100, values[dated] % 100
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    is_date = (month >= 1) & (month <= 12) & (days.astype("datetime64[M]") == months)
    ms[dated] = np.where(is_date, days.astype(np.int64) * DAY, MISSING_INT64)
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
