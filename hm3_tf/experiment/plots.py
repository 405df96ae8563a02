"""Plots of an experiment: how a measure moves over logs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from hm3_tf.experiment.results import Estimate, Results
from hm3_tf.report.svg import Plot, draw, run_style

_DIGITS = 4  # in words
_APART = 0.05  # of the way from one log to the next, so that intervals do not hide each other


@dataclasses.dataclass(frozen=True)
class Lines:
    """A line a run over logs: the mean over seeds with its 95 % interval, or that of the paired difference from a baseline.

    Attributes:
      title: What it shows, in some words.
      runs: Names of the runs.
      logs: {name of a log: what its tick says}, in order.
      measure: The measure.
      axis: What the vertical axis says.
      baseline: Run that the others are compared with, or "" for none.
    """

    title: str
    runs: Sequence[str]
    logs: Mapping[str, str]
    measure: str
    axis: str
    baseline: str = ""

    def plot(self, key: str, results: Results) -> Plot:
        """Returns the plot.

        Args:
          key: Its id.
          results: What was measured; a run is drawn on the logs that have it.
        """
        found = {
            run: {log: value for log in self.logs if (value := self._value(results, run, log))} for run in self.runs
        }

        def paint(axes: Axes) -> None:
            places = {log: i for i, log in enumerate(self.logs)}
            for i, (run, values) in enumerate(found.items()):
                x = np.array([places[log] for log in values]) + _APART * (i - (len(found) - 1) / 2)
                means = np.array([value.mean for value in values.values()])
                ends = np.array([(value.low, value.high) for value in values.values()]).reshape(-1, 2).T
                axes.errorbar(x, means, np.abs(ends - means), label=run, capsize=2, elinewidth=0.8, **run_style(i))
            if self.baseline:
                axes.axhline(0, color="#666666", linewidth=0.8, linestyle=(0, (2, 3)))
            axes.set_xticks(range(len(self.logs)), list(self.logs.values()))
            axes.set_ylabel(self.axis)

        words = [
            f"{run}: "
            + ", ".join(f"{self.logs[log]} {value.mean:.{_DIGITS}f} ({value.low:.{_DIGITS}f} to "
                        f"{value.high:.{_DIGITS}f})" for log, value in values.items())
            for run, values in found.items()
        ]  # fmt: skip
        return draw(key, self.title, "", f"Means and 95 % intervals. {'; '.join(words)}.", paint)

    def _value(self, results: Results, run: str, log: str) -> Estimate | None:
        if self.baseline:
            return None if run == self.baseline else results.difference(run, self.baseline, log, self.measure)
        return results.estimate(run, log, self.measure)
