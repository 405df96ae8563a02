"""The page of a report."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from data_pipeline import storage
from data_pipeline.index import SplitIndex
from hm3_tf.config import TARGETS
from hm3_tf.report import plots
from hm3_tf.report.gather import Report, ReportedRun, gather
from hm3_tf.report.svg import Plot
from hm3_tf.report.templates import render_template
from hm3_tf.tables import COLUMNS
from hm3_tf.workdir import Workdir

_FIGURES = {"auc": ("AUC", 4), **{name: (title, digits) for name, (title, _, digits) in COLUMNS.items()}}
_SLICE_FIGURES = ("auc", "log_loss", "pcoc")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: What it shows.
      value: Its number in full, or None for text.
      interval: The 95 % interval below it, as text.
      strong: Whether it stands out.
    """

    text: str
    value: float | None = None
    interval: str = ""
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: What it shows.
      columns: Heads of the columns.
      rows: Cells of each row; the first ones name it.
      names: Number of the cells that name a row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
      key: Its id.
      title: Its title.
      text: What its tables say, in a sentence or two.
      tables: Tables.
      plots: Plots.
    """

    key: str
    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def write_report(runs: Sequence[Workdir], index: SplitIndex, split: str, slices: Sequence[str], output: str) -> None:
    """Writes the report of runs on a split as one file of HTML.

    Args:
      runs: The runs, of those that `gather.check_runs` lets through.
      index: The split.
      split: Its name.
      slices: Columns of the log, each value of which gets the figures of its rows.
      output: The file; it appears only when complete.

    Raises:
      Hm3Error: As `gather`, or the file cannot be written.
    """
    with storage.staged_file(output) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
        file.write("")  # so that a file that cannot be written is refused before the work
        file.write(render(gather(runs, index, split, slices)))


def render(report: Report) -> str:
    """Returns the page of a report."""
    return render_template("page.html", report=report, sections=_sections(report))


def _sections(report: Report) -> list[Section]:
    runs = report.runs
    scored = [
        Section("figures", "Figures", tables=[_headline(runs)], text=_GLOSSARY),
        *_differences(runs),
        Section("funnel", "Funnel", plots=plots.funnel_plots(runs)),
        Section("roc", "ROC curves", plots=plots.roc_plots(runs)),
        Section("precision", "Precision and recall", plots=plots.precision_recall_plots(runs)),
        Section("reliability", "Reliability", plots=plots.reliability_plots(runs)),
        Section("scores", "Scores", plots=plots.histogram_plots(runs)),
        *_slices(runs),
    ]
    learned = plots.learning_plots(runs)
    missing = "" if learned else "The workdirs have no metrics.jsonl."
    return [*scored, Section("learning", "Learning curves", missing, plots=learned), _settings(report)]


_GLOSSARY = (
    "Below a figure is its 95 % interval. pctr is P(click), pcvr P(conversion | click) on the clicked rows, pctcvr "
    "P(click and conversion). GAUC is the mean AUC within a group, PR-AUC the area under precision and recall, log loss in "
    "nats a row, NE the log loss over that of predicting the mean rate, PCOC the predicted over the observed rate (1 is "
    "calibrated), ECE the calibration error, Bayes AUC that of the true probabilities of a simulated log."
)


def _number(figures: Mapping[str, Any], name: str, strong: bool = False, digits: int | None = None) -> Cell:
    """Returns the cell of a figure and its interval."""
    digits = _FIGURES[name][1] if digits is None else digits
    value, interval = figures.get(name), figures.get(f"{name}_interval")
    if value is None:
        return Cell("–")
    text = f"{interval[0]:.{digits}f} … {interval[1]:.{digits}f}" if interval else ""
    if figures["too_small"] and f"{name}_interval" in figures:
        text = "too few rows"
    return Cell(f"{value:.{digits}f}", value, text, strong)


def _counts(figures: Mapping[str, Any]) -> list[Cell]:
    return [Cell(f"{figures[name]:,}", figures[name]) for name in ("rows", "positives")]


def _figures_table(
    title: str, heads: Sequence[str], lines: Sequence[tuple[Sequence[str], Mapping]], names: Iterable[str]
):
    """Returns the table of figures of named lines: (names, figures) each; a figure that no line has gets no column."""
    shown = [name for name in names if any(name in figures for _, figures in lines)]
    rows = [
        [*map(Cell, named), *_counts(figures), *(_number(figures, name) for name in shown)] for named, figures in lines
    ]
    columns = [*heads, "rows", "positives", *(_FIGURES[name][0] for name in shown)]
    return Table(title, columns, rows, len(heads))


def _headline(runs: Sequence[ReportedRun]) -> Table:
    targets = dict.fromkeys(target for run in runs for target in run.targets)
    several = len(runs) > 1
    lines = [
        ((target, run.name) if several else (target,), run.targets[target])
        for target in targets
        for run in runs
        if target in run.targets
    ]
    return _figures_table("Figures of each target", ("target", "run") if several else ("target",), lines, _FIGURES)


def _differences(runs: Sequence[ReportedRun]) -> list[Section]:
    """Returns the section of the first run's figures less the others', where there are others."""
    if len(runs) == 1:
        return []
    tables = [
        Table(
            f"{runs[0].name} less {run.name}",
            ["target", *(title for title, _ in shown.values())],
            [
                [Cell(target), *(_difference(figures, name) for name in shown)]
                for target, figures in run.differences.items()
            ],
        )
        for run in runs[1:]
        for shown in [{n: f for n, f in _FIGURES.items() if any(n in figures for figures in run.differences.values())}]
    ]
    text = (
        "Differences on the same rows. * and bold type mark those whose 95 % interval leaves out zero; one in twenty does by "
        "chance. An interval is of the rows, not of the seed: train with several before you choose."
    )
    return [Section("differences", "Differences", text, tables, plots.difference_plots(runs))]


def _difference(figures: Mapping[str, Any], name: str) -> Cell:
    cell, interval = _number(figures, name, digits=5), figures[f"{name}_interval"]
    told_apart = bool(interval) and (interval[0] > 0 or interval[1] < 0)
    return dataclasses.replace(cell, text=cell.text + " *", strong=True) if told_apart else cell


def _slices(runs: Sequence[ReportedRun]) -> list[Section]:
    sections = []
    for number, column in enumerate(runs[0].evaluation.metrics.get("slices", {})):
        tables = [_slice_table(runs, column, target) for target in TARGETS]
        title, drawn = f"Slices by {column}", plots.slice_plots(runs, column, number)
        sections.append(Section(f"slices-{number}", title, tables=tables, plots=drawn))
    return sections


def _slice_table(runs: Sequence[ReportedRun], column: str, target: str) -> Table:
    several = len(runs) > 1
    slices = {run.name: run.evaluation.metrics["slices"][column] for run in runs}
    lines = [
        ((value, run.name) if several else (value,), slices[run.name][value][target])
        for value in slices[runs[0].name]
        for run in runs
    ]
    heads = (column, "run") if several else (column,)
    return _figures_table(f"{target} by {column}", heads, lines, _SLICE_FIGURES)


def _settings(report: Report) -> Section:
    """Returns the section of configs and versions; what differs among the runs stands out."""
    names = [run.name for run in report.runs]
    config = _values_table("Config", ["field", *names], [run.settings for run in report.runs])
    versions = {f"trained: {run.name}": run.versions for run in report.runs} | {"evaluated": report.versions}
    packages = _values_table("Versions", ["package", *versions], list(versions.values()))
    text = "≠ and bold type mark what differs among the runs." if len(names) > 1 else ""
    return Section("config", "Config and versions", text, [config, packages])


def _values_table(title: str, columns: Sequence[str], values: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for field in dict.fromkeys(name for column in values for name in column):
        texts = [str(column.get(field, "–")) for column in values]
        differ = len(set(texts) - {"–"}) > 1
        rows.append([Cell(f"{field} ≠" if differ else field), *(Cell(text, strong=differ) for text in texts)])
    return Table(title, columns, rows)
