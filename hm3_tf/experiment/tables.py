"""Tables of an experiment in Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence

from hm3_tf.experiment.results import Estimate, Results

_DIGITS = 4  # of an AUC


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
    digits: int = _DIGITS
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
        return f"**{self.title}** {_count(seeds)}{compared}.\n\n" + "\n".join(lines) + "\n"

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
        if self.relative:
            return _signed(difference, 2, scale=100, unit=" %")
        return _signed(difference, self.digits)


@dataclasses.dataclass(frozen=True)
class Steps:
    """A row a pair of runs, a column a log and measure: the difference of the two, paired by seed.

    Attributes:
      title: Its heading.
      pairs: (run, the run taken off it), in order.
      logs: Names of the logs.
      measures: {measure: what the column says}.
      published: {run of a pair: text of the paper's own difference, in a last column}.
    """

    title: str
    pairs: Sequence[tuple[str, str]]
    logs: Sequence[str]
    measures: Mapping[str, str]
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs in it."""
        return tuple(dict.fromkeys(run for pair in self.pairs for run in pair))

    def markdown(self, results: Results) -> str:
        """Returns the table; a difference whose 95 % interval leaves out zero is bold."""
        columns = [(log, measure) for log in self.logs for measure in self.measures]
        heads = [f"{self.measures[measure]}, {log}" for log, measure in columns]
        header = ["difference", *heads, *(["the paper"] if self.published else [])]
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for run, other in self.pairs:
            differences = [results.difference(run, other, *column) for column in columns]
            cells = [_signed(difference, _DIGITS) if difference else "" for difference in differences]
            last = [self.published.get(run, "")] if self.published else []
            lines.append(f"| {' | '.join([f'{run} less {other}', *cells, *last])} |")
        seeds = [len(results.seeds(run, log)) for run in self.runs for log in self.logs]
        return f"**{self.title}** {_count(seeds)}, paired by seed, with 95 % intervals.\n\n" + "\n".join(lines) + "\n"


def _count(seeds: Sequence[int]) -> str:
    return (
        f"Mean over {min(seeds)} seeds" if min(seeds) == max(seeds) else f"Mean over {min(seeds)} to {max(seeds)} seeds"
    )


def _signed(difference: Estimate, digits: int, scale: float = 1, unit: str = "") -> str:
    mean, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.mean, difference.low, difference.high))
    text = f"{mean}{unit} [{low}, {high}]"
    return f"**{text}**" if difference.leaves_out_zero else text
