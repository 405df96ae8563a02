"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import datetime
import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far long work is.

    Args:
      what: What is being done, in a word or two.
      total: Units of all the work, or None where it is not known.
      unit: Name of a unit.
      done: Units that were finished before.
    """

    def __init__(self, what: str, total: int | None, unit: str = "rows", done: int = 0) -> None:
        self._what, self._unit, self._total = what, unit, total
        bar = {"unit": f" {unit}", "unit_scale": True, "disable": not sys.stderr.isatty()}
        self._bar = tqdm(desc=what, total=total, initial=done, **bar)
        self._done = self._before = done
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if error is None and self._bar.disable:
            self._print_line()

    def advance(self, units: int) -> None:
        """Adds finished units."""
        self._done += units
        self._bar.update(units)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line()

    def reach(self, units: int) -> None:
        """Says how many units are finished in all."""
        self.advance(units - self._done)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = (self._done - self._before) / max(self._last_line - self._start, 1e-9)
        of_total = f" of {self._total:,}" if self._total else ""
        left = f", {_duration((self._total - self._done) / rate)} left" if self._total and rate else ""
        speed = f"{rate:,.0f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"
        print(f"{self._what}: {self._done:,}{of_total} {self._unit}, {speed}{left}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Returns a time as 1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))
