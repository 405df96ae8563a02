"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

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
    """

    def __init__(self, what: str, total: int | None, unit: str = "rows") -> None:
        self._what, self._unit, self._total = what, unit, total
        self._bar = tqdm(desc=what, total=total, unit=f" {unit}", unit_scale=True, disable=not sys.stderr.isatty())
        self._done = 0
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

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        of_total = f" of {self._total:,}" if self._total else ""
        rate = self._done / max(self._last_line - self._start, 1e-9)
        print(f"{self._what}: {self._done:,}{of_total} {self._unit}, {rate:,.0f} a second", file=sys.stderr, flush=True)
