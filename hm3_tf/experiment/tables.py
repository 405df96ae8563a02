"""Tables of an experiment in Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence

from hm3_tf.experiment.results import Estimate, Results


@dataclasses.dataclass(frozen=True)
class Table:
    """A row a run, a column a log and measure: the mean over seeds, and the paired difference from a baseline.

    Attributes:
      title: Its heading.
      runs: Names of the runs, in order.
      logs: Names of the logs.
      measures: {measure: what the column says}.
      baseline: Run that the others are compared with, or "" for none.
      digits: Digits behind the point.
      relative: Whether differences are shares of the baseline's value, in percent.
      published: {run: text of the paper's own figures, in a last column}.
    """

    title: str
    runs: Sequence[str]
    logs: Sequence[str]
    measures: Mapping[str, str]
    baseline: str = ""
    digits: int = 4
    relative: bool = False
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def markdown(self, results: Results) -> str:
        """Returns the table; a difference whose 95 % interval leaves out zero is bold."""
        columns = [(log, measure) for log in self.logs for measure in self.measures]
        seeds = [len(results.seeds(run, log)) for run in self.runs for log in self.logs]
        heads = [f"{self.measures[measure]}, {log}" for log, measure in columns]
        header = ["run", *heads, *(["the paper"] if self.published else [])]
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for run in self.runs:
            cells = [self._cell(results, run, *column) for column in columns]
            last = [self.published.get(run, "")] if self.published else []
            lines.append(f"| {' | '.join([run, *cells, *last])} |")
        compared = f"; differences from {self.baseline}, paired by seed, with 95 % intervals" if self.baseline else ""
        count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        return f"**{self.title}** Mean over {count} seeds{compared}.\n\n" + "\n".join(lines) + "\n"

    def _cell(self, results: Results, run: str, log: str, measure: str) -> str:
        value = results.estimate(run, log, measure)
        if value is None:
            return ""
        text = f"{value.mean:.{self.digits}f}"
        if not self.baseline:
            return f"{text} [{value.low:.{self.digits}f}, {value.high:.{self.digits}f}]"
        if run == self.baseline:
            return text
        difference = results.difference(run, self.baseline, log, measure, relative=self.relative)
        return f"{text} ({self._signed(difference)})" if difference else text

    def _signed(self, difference: Estimate) -> str:
        scale, digits = (100, 2) if self.relative else (1, self.digits)
        mean, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.mean, difference.low, difference.high))
        text = f"{mean}{' %' if self.relative else ''} [{low}, {high}]"
        return f"**{text}**" if difference.leaves_out_zero else text
