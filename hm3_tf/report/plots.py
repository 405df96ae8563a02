"""The plots of a report. Each is of all runs, told apart by dashes and markers, but for the histograms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hm3_tf import curves
from hm3_tf.config import TARGETS
from hm3_tf.report.gather import ReportedRun
from hm3_tf.report.svg import HEIGHT, Plot, draw, log_percent_axis, percent, printable, run_style

_MARKERS = 9  # on a line
_STEPS_SHOWN = 200  # points of a learning curve
_HISTOGRAM_WIDTH = 0.25  # log-odds
_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999)  # probabilities above a histogram
_TICKS_APART = 0.2  # of the width, at least
_TICK_LENGTH = 18  # characters
_LEVEL_LENGTH = 36  # characters that the levels of a funnel have side by side
_RATES = ("rate", "prediction")
_MEANING = {
    "pctr": "P(click)",
    "pcvr": "P(conversion | click), on clicked rows",
    "pctcvr": "P(click and conversion)",
}
Runs = Sequence[ReportedRun]


def _with_both_classes(runs: Runs, target: str) -> list[tuple[int, ReportedRun, np.ndarray]]:
    found = [(i, run, run.counts[target]) for i, run in enumerate(runs) if target in run.counts]
    return [(i, run, counts) for i, run, counts in found if counts.any(axis=1).all()]


def _line(axes: Axes, i: int, run: ReportedRun, x: np.ndarray, y: np.ndarray) -> None:
    every = max(1, len(x) // _MARKERS)
    offset = i * every // 3 % every  # so that markers of two runs do not hide each other
    axes.plot(x, y, label=run.name, markevery=(offset, every), **run_style(i))


def _percent_axes(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))


def _figure(run: ReportedRun, target: str, name: str, digits: int) -> str:
    figures = run.targets[target]
    return figure_words(figures[name], figures[f"{name}_interval"], digits)


def figure_words(value: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """Returns a figure and its interval in words."""
    if value is None:
        return "undefined"
    ends = f" (95 % interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{ends}"


def roc_plots(runs: Runs) -> list[Plot]:
    """Returns a plot of ROC curves for each target."""
    plots = []
    for target in TARGETS:
        lines = [(i, run, curves.roc_curve(counts)) for i, run, counts in _with_both_classes(runs, target)]

        def paint(axes: Axes, lines: Sequence = lines) -> None:
            axes.plot([0, 1], [0, 1], color="#666666", linewidth=0.8, linestyle=(0, (2, 3)))
            for i, run, points in lines:
                _line(axes, i, run, *points)
            axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(0, 1), ylim=(0, 1.01))
            _percent_axes(axes)

        words = [
            f"{run.name}: AUC {_figure(run, target, 'auc', 4)}; where 10 % of the negatives are let through it finds "
            f"{_at(0.1, points)} of the positives."
            for _, run, points in lines
        ]
        caption = f"{_MEANING[target]}. Higher is better; the dotted diagonal is a coin."
        plots.append(draw(f"roc-{target}", f"ROC, {target}", caption, _joined(words), paint))
    return plots


def precision_recall_plots(runs: Runs) -> list[Plot]:
    """Returns a plot of precision-recall curves for each target."""
    plots = []
    for target in TARGETS:
        found = _with_both_classes(runs, target)
        lines = [(i, run, curves.precision_recall_curve(counts)) for i, run, counts in found]
        rate = runs[0].targets[target]["rate"] or 0.0

        def paint(axes: Axes, lines: Sequence = lines, rate: float = rate) -> None:
            for i, run, points in lines:
                _line(axes, i, run, *points)
            axes.set(xlabel="recall", ylabel="precision (log)", xlim=(0, 1))
            _percent_axes(axes)
            if lines:
                axes.axhline(rate, color="#666666", linewidth=0.8, linestyle=(0, (2, 3)))
                highest = max(points[1].max() for _, _, points in lines)
                log_percent_axis(axes, "y", rate / 1.3, min(1.0, highest) * 1.15)

        words = [
            f"{run.name}: area {_figure(run, target, 'pr_auc', 4)}; precision {_at(0.1, points)} at a "
            f"recall of 10 %, {_at(0.5, points)} at 50 %; {percent(rate)} of the rows are positive."
            for _, run, points in lines
        ]
        caption = f"{_MEANING[target]}. Higher is better; the dotted line is the rate, the precision of a coin."
        plots.append(draw(f"pr-{target}", f"Precision and recall, {target}", caption, _joined(words), paint))
    return plots


def _at(x: float, points: np.ndarray) -> str:
    """Returns the height of a curve, float64 [2, points], at `x`."""
    return percent(float(np.interp(x, *points)))


def _joined(words: Sequence[str]) -> str:
    return " ".join(words) or "Nothing is drawn: there are no rows of both classes."


def reliability_plots(runs: Runs) -> list[Plot]:
    """Returns a plot of observed against predicted rates for each target."""
    plots = []
    for target in TARGETS:
        lines = [(i, run, curves.reliability(counts)) for i, run, counts in _with_both_classes(runs, target)]

        def paint(axes: Axes, lines: Sequence = lines) -> None:
            axes.set(xlabel="predicted (log)", ylabel="observed (log)")
            if lines:
                _paint_reliability(axes, lines)

        words = [
            f"{run.name}: calibration error {_figure(run, target, 'ece', 5)}; in {len(bins.rows)} bins of equal numbers of "
            f"rows, predicted {percent(bins.predicted[0])} to {percent(bins.predicted[-1])}, observed "
            f"{percent(bins.observed[0])} to {percent(bins.observed[-1])}; observed over predicted is "
            f"{(bins.observed / bins.predicted).min():.2f} to {(bins.observed / bins.predicted).max():.2f}."
            for _, run, bins in lines
        ]
        caption = (
            f"{_MEANING[target]}, 20 bins of equal numbers of rows. A calibrated model is on the dotted diagonal, within "
            "its 95 % intervals (Wilson's); above it the model predicts too little. A bar without a marker had no positive."
        )
        plots.append(draw(f"reliability-{target}", f"Reliability, {target}", caption, _joined(words), paint))
    return plots


def _paint_reliability(axes: Axes, lines: Sequence[tuple[int, ReportedRun, curves.Reliability]]) -> None:
    ends: list[float] = []
    for _, _, bins in lines:
        some = bins.positives > 0
        ends += [*bins.predicted, *bins.interval[0][some], *bins.interval[1]]
    low, high = min(ends) / 1.3, min(max(ends) * 1.3, 1.3)
    axes.plot([low, high], [low, high], color="#666666", linewidth=0.8, linestyle=(0, (2, 3)))
    for i, run, bins in lines:
        style, some = run_style(i), bins.positives > 0
        axes.vlines(
            bins.predicted, np.maximum(bins.interval[0], low), bins.interval[1], color=style["color"], linewidth=0.8
        )
        axes.plot(bins.predicted[some], bins.observed[some], label=run.name, **{**style, "linewidth": 1.0})
    log_percent_axis(axes, "x", low, high)
    log_percent_axis(axes, "y", low, high)


def histogram_plots(runs: Runs) -> list[Plot]:
    """Returns a histogram of the scores of each target and run."""
    plots = []
    for i, run in enumerate(runs):
        for j, (target, counts) in enumerate(run.counts.items()):
            edges, (negatives, positives) = curves.score_shares(counts, _HISTOGRAM_WIDTH)

            def paint(
                axes: Axes, edges: np.ndarray = edges, shares: Sequence[np.ndarray] = (negatives, positives)
            ) -> None:
                if len(edges) > 1:
                    _paint_histogram(axes, edges, *shares)

            words = "There are no rows of both classes."
            if counts.any(axis=1).all():
                middle = [f"{odds:.2f} ({percent(1 / (1 + math.exp(-odds)))})" for odds in curves.median_odds(counts)]
                words = f"Median log-odds: {middle[0]} of {counts[0].sum():,} negatives, {middle[1]} of {counts[1].sum():,} "
                words += "positives."
            title = f"Scores, {target}" + (f", {run.name}" if len(runs) > 1 else "")
            caption = "The further the positives are to the right of the negatives, the better they are told apart."
            plots.append(draw(f"scores-{i}-{j}", title, caption, words, paint))
    return plots


def _paint_histogram(axes: Axes, edges: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> None:
    axes.stairs(negatives, edges, label="negatives", color="#666666", linestyle=(0, (2, 1)), linewidth=1.3)
    axes.stairs(positives, edges, label="positives", color="#0072B2", fill=True, alpha=0.2)
    axes.stairs(positives, edges, color="#0072B2", linewidth=1.8)
    shares = np.concatenate([negatives, positives])
    low, high = shares[shares > 0].min() / 1.5, shares.max() * 1.5
    axes.set(xlabel="log-odds of the prediction", ylabel="share of the class (log)")
    axes.set_xlim(edges[0] - _HISTOGRAM_WIDTH, edges[-1] + _HISTOGRAM_WIDTH)
    log_percent_axis(axes, "y", low, high)
    above = axes.secondary_xaxis("top")
    places: dict[float, str] = {}
    for p in reversed(_TICKS):
        odds = math.log(p / (1 - p))
        apart = min((place - odds for place in places), default=math.inf)
        if edges[0] <= odds <= edges[-1] and apart > _TICKS_APART * (edges[-1] - edges[0]):
            places[odds] = percent(p)
    above.set_xticks(list(places), list(places.values()))


def funnel_plots(runs: Runs) -> list[Plot]:
    """Returns the plot of the rates of all levels and that of predicted over observed ones."""
    observed = {name: f["rate"] for run in runs for name, f in run.evaluation.metrics["levels"].items()}
    observed = dict(sorted(observed.items(), key=lambda item: -(item[1] or 0)))
    places = {level: float(i) for i, level in enumerate(observed)}
    limits = _limits([f[name] for run in runs for f in run.evaluation.metrics["levels"].values() for name in _RATES])

    def paint(axes: Axes) -> None:
        axes.plot(
            list(places.values()),
            np.array(list(observed.values()), float),
            color="#222222",
            marker="_",
            markersize=22,
            label="observed",
        )
        for i, run in enumerate(runs):
            levels = run.evaluation.metrics["levels"]
            at = [places[level] + _dodge(i, len(runs), 0.12) for level in levels]
            style = {**run_style(i), "linestyle": "none"}
            axes.plot(
                at,
                np.array([figures["prediction"] for figures in levels.values()], float),
                label=f"{run.name}, predicted",
                **style,
            )
        names = [printable(level, _TICK_LENGTH) for level in places]
        axes.set_xticks(list(places.values()), names, rotation=20 if sum(map(len, names)) > _LEVEL_LENGTH else 0)
        axes.set(ylabel="share of the impressions (log)", xlim=(-0.5, len(places) - 0.5))
        if limits:
            log_percent_axis(axes, "y", *limits)

    words = [
        f"{level}: observed {percent(rate or 0)}, predicted "
        + ", ".join(
            f"{percent(run.evaluation.metrics['levels'][level]['prediction'] or 0)} by {run.name}"
            for run in runs
            if level in run.evaluation.metrics["levels"]
        )
        + "."
        for level, rate in observed.items()
    ]
    caption = "A marker above the bar of its level predicts too much, one below too little."
    ratios = forest_plot(
        "funnel-pcoc",
        "Predicted over observed (PCOC)",
        "1 is calibrated in the mean; lines are 95 % intervals.",
        list(observed),
        {run.name: {level: _pair(f, "pcoc") for level, f in run.evaluation.metrics["levels"].items()} for run in runs},
        reference=1.0,
        digits=3,
    )
    return [draw("funnel-rates", "Funnel, predicted and observed", caption, " ".join(words), paint), ratios]


def _limits(rates: Sequence[float | None]) -> tuple[float, float] | None:
    """Returns the ends of a logarithmic axis with room about all rates above 0; None where there are none."""
    shown = [rate for rate in rates if rate]
    return (min(shown) / 1.8, max(shown) * 1.8) if shown else None


def _pair(figures: Mapping[str, Any], name: str) -> tuple[float | None, Sequence[float] | None]:
    return figures[name], figures[f"{name}_interval"]


def _dodge(i: int, count: int, width: float) -> float:
    return width * (i - (count - 1) / 2)


def forest_plot(
    key: str,
    title: str,
    caption: str,
    lines: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[float | None, Sequence[float] | None]]],
    reference: float | None,
    digits: int,
    first_style: int = 0,
) -> Plot:
    """Returns a plot of figures with their intervals, a line each.

    Args:
      key: Its id in the page.
      title: What it shows, in some words.
      caption: What to look for.
      lines: Names of the lines, from top to bottom.
      series: {run: {line: (figure, its interval)}}, None where one does not exist.
      reference: A figure to mark with a dotted line, or None.
      digits: Of a figure in words.
      first_style: Number of the style of the first run.
    """

    def paint(axes: Axes) -> None:
        if reference is not None:
            axes.axvline(reference, color="#666666", linewidth=0.8, linestyle=(0, (2, 3)))
        for i, (name, values) in enumerate(series.items()):
            shown = [(line, *pair) for line, pair in values.items() if pair[0] is not None]
            at = [lines.index(line) + _dodge(i, len(series), min(0.25, 0.7 / len(series))) for line, _, _ in shown]
            style = run_style(first_style + i)
            axes.plot(
                np.array([value for _, value, _ in shown], float), at, label=name, **{**style, "linestyle": "none"}
            )
            for y, (_, _, interval) in zip(at, shown):
                if interval:
                    axes.plot(interval, [y, y], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        axes.set_yticks(range(len(lines)), [printable(line, _TICK_LENGTH) for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    words = [
        f"{name}: " + "; ".join(f"{line} {figure_words(*pair, digits)}" for line, pair in values.items()) + "."
        for name, values in series.items()
    ]
    height = max(HEIGHT * 0.7, 1.0 + len(lines) * (0.16 + 0.14 * len(series)))
    return draw(key, title, caption, " ".join(words), paint, height)


def learning_plots(runs: Runs) -> list[Plot]:
    """Returns the training loss by step, and the AUC on validation by epoch for each target; none without a history."""
    losses = {i: _points(run, ("loss",), epoch_end=False) for i, run in enumerate(runs)}
    caption = (
        "One that still falls has more to learn. It sums over a method's levels: between methods only shapes compare."
    )
    plots = [_learning_plot("learning-loss", "Training loss", "loss", runs, losses, caption)]
    for target in TARGETS:
        aucs = {i: _points(run, ("validation", target, "auc"), epoch_end=True) for i, run in enumerate(runs)}
        caption = (
            "A line that turns down learns the training rows by heart; the figures above are of the best checkpoint."
        )
        plots.append(_learning_plot(f"learning-{target}", f"Validation AUC, {target}", "AUC", runs, aucs, caption))
    return [plot for plot in plots if plot is not None]


def _points(run: ReportedRun, names: Sequence[str], epoch_end: bool) -> np.ndarray:
    """Returns (step, value) of the lines of a history that have one, thinned: float64 [2, points]."""
    found = []
    for line in run.history:
        value: Any = line
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None and ("epoch_end" in line) == epoch_end:
            found.append((line["step"], value))
    parts = np.array_split(np.array(found, float).reshape(-1, 2), min(max(len(found), 1), _STEPS_SHOWN))
    return np.array([part.mean(axis=0) for part in parts if len(part)]).reshape(-1, 2).T


def _learning_plot(
    key: str, title: str, label: str, runs: Runs, points: Mapping[int, np.ndarray], caption: str
) -> Plot | None:
    found = {i: line for i, line in points.items() if line.shape[1]}
    if not found:
        return None

    def paint(axes: Axes) -> None:
        for i, line in found.items():
            _line(axes, i, runs[i], *line)
        axes.set(xlabel="step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    words = [
        f"{runs[i].name}: {steps[0]:,.0f} steps {values[0]:.4f}, {steps[-1]:,.0f} steps {values[-1]:.4f}, "
        f"lowest {values.min():.4f}, highest {values.max():.4f}."
        for i, (steps, values) in found.items()
    ]
    return draw(key, title, caption, " ".join(words), paint)


def slice_plots(runs: Runs, column: str, number: int) -> list[Plot]:
    """Returns a plot of the AUC in each slice of a column, for each target; `number` is that of the column."""
    plots = []
    for target in TARGETS:
        series = {
            run.name: {
                value: _pair(figures[target], "auc")
                for value, figures in run.evaluation.metrics["slices"][column].items()
            }
            for run in runs
        }
        caption = (
            f"{_MEANING[target]}. Slices with most rows first; without a line there are too few rows for an interval."
        )
        key, title = f"slice-{number}-{target}", f"AUC of {target} by {column}"
        plots.append(forest_plot(key, title, caption, list(series[runs[0].name]), series, None, digits=4))
    return plots


def difference_plots(runs: Runs) -> list[Plot]:
    """Returns a plot of the first run's AUC and one of its log-loss less those of the others."""
    shared = [target for target in runs[0].targets if any(target in run.differences for run in runs)]
    plots = []
    for figure, title, better in (("auc", "AUC", "right"), ("log_loss", "log-loss", "left")):
        series = {}
        for run in runs[1:]:
            pairs = {name: _pair(figures, figure) for name, figures in run.differences.items()}
            series[f"{runs[0].name} less {run.name}"] = pairs
        caption = f"{runs[0].name} is better {better} of the dotted zero; a line that crosses it leaves open which is."
        plots.append(
            forest_plot(
                f"difference-{figure}",
                f"Difference of {title}",
                caption,
                shared,
                series,
                0.0,
                5,
                first_style=1,
            )
        )
    return plots
