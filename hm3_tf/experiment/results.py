"""The results of an experiment, and differences of runs paired by seed."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from data_pipeline import storage

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (Student's t), whose ends are NaN for a single seed.

    Attributes:
      mean: The mean.
      low, high: Ends of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether the interval says that the mean is not zero."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values and its interval.

    >>> round(estimate([1.0, 2.0, 3.0]).low, 3)  # 2 - 4.303 / sqrt(3)
    -0.484

    Args:
      values: Of the seeds, at least one.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * float(np.std(values, ddof=1)) / count**0.5
    return Estimate(mean, mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured.

    Attributes:
      measured: {(run, log, seed): {measure: value}}.
    """

    measured: Mapping[tuple[str, str, int], Mapping[str, float]]

    def seeds(self, run: str, log: str) -> list[int]:
        """Returns the seeds of a run on a log, ascending."""
        return sorted(seed for name, where, seed in self.measured if (name, where) == (run, log))

    def values(self, run: str, log: str, measure: str) -> list[float]:
        """Returns the values of a measure, by ascending seed; empty where the run has no such measure."""
        cells = [self.measured[run, log, seed] for seed in self.seeds(run, log)]
        return [cell[measure] for cell in cells if measure in cell]

    def mean(self, run: str, log: str, measures: Sequence[str]) -> float:
        """Returns the mean over seeds of the sum of measures."""
        return float(sum(np.mean(self.values(run, log, measure)) for measure in measures))

    def estimate(self, run: str, log: str, measure: str) -> Estimate | None:
        """Returns the mean of a measure, or None where it was not measured."""
        values = self.values(run, log, measure)
        return estimate(values) if values else None

    def difference(self, run: str, other: str, log: str, measure: str, *, relative: bool = False) -> Estimate | None:
        """Returns the mean difference of two runs, paired by seed: on the same log, from weights of the same seed.

        Args:
          run: The one.
          other: The other, which is taken off it.
          log: The log.
          measure: The measure.
          relative: Whether the difference is a share of the other's value.

        Returns:
          The estimate, or None where one of them was not measured.
        """
        shared = sorted(set(self.seeds(run, log)) & set(self.seeds(other, log)))
        pairs = [[self.measured[name, log, seed].get(measure) for name in (run, other)] for seed in shared]
        pairs = [pair for pair in pairs if None not in pair]
        if not pairs:
            return None
        first, second = np.array(pairs).T
        return estimate((first - second) / (second if relative else 1.0))


def write_csv(results: Results, path: str) -> None:
    """Writes the results, a line a value: run, log, seed, measure, value.

    Args:
      results: The results.
      path: The file.

    Raises:
      Hm3Error: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "log", "seed", "measure", "value"))
    for (run, log, seed), measures in sorted(results.measured.items()):
        writer.writerows((run, log, seed, measure, repr(value)) for measure, value in measures.items())
    storage.write_text(path, text.getvalue())
