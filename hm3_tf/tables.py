"""Figures as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from hm3_tf.config import TARGETS

COLUMNS = {  # title, width, digits
    "gauc": ("GAUC", 7, 4),
    "gauc_unweighted": ("uGAUC", 7, 4),
    "pr_auc": ("PR-AUC", 8, 5),
    "log_loss": ("log loss", 9, 5),
    "normalized_entropy": ("NE", 7, 4),
    "pcoc": ("PCOC", 7, 3),
    "ece": ("ECE", 8, 5),
    "bayes_auc": ("Bayes AUC", 9, 4),
}


def named_targets(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the figures of the targets, and of the levels between click and conversion."""
    between = list(metrics["levels"].items())[1:-1]
    return {name: metrics[name] for name in TARGETS} | {f"P({level})": figures for level, figures in between}


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def _interval(figures: Mapping[str, Any], name: str, digits: int) -> str:
    if figures["too_small"]:
        return "too few rows"
    interval = figures[f"{name}_interval"]
    return "-" if interval is None else f"{interval[0]:.{digits}f}…{interval[1]:.{digits}f}"


def _figures_table(named: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shown = [column for column in COLUMNS if any(column in figures for figures in named.values())]
    width = max(10, *map(len, named))
    heads = [f"{title:>{cells}}" for title, cells, _ in (COLUMNS[column] for column in shown)]
    lines = [f"  {'':<{width}} {'rows':>12} {'positives':>10} {'AUC':>7} {'95 %':<13} {' '.join(heads)}"]
    for name, figures in named.items():
        cells = [_cell(figures.get(column), *COLUMNS[column][1:]) for column in shown]
        auc = f"{_cell(figures['auc'], 7, 4)} {_interval(figures, 'auc', 4):<13}"
        lines.append(f"  {name:<{width}} {figures['rows']:>12,} {figures['positives']:>10,} {auc} {' '.join(cells)}")
    share = min(figures.get("gauc_share", 1.0) for figures in named.values())
    return [*lines, f"  GAUC is that of a sample of {share:.3%} of the groups"] if share < 1 else lines


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Returns the figures of `metrics.json` as text: targets, then slices, then the comparison, where there are any."""
    lines = [f"{metrics['split']}: {metrics['rows']:,} rows", *_figures_table(named_targets(metrics))]
    for column, slices in metrics.get("slices", {}).items():
        for target in named_targets(metrics):
            named = {value: named_targets(figures)[target] for value, figures in slices.items()}
            lines += [f"{target} by {column}", *_figures_table(named)]
    if "compare" in metrics:
        lines += _differences(metrics["compare"])
    return "\n".join(lines)


def _differences(comparison: Mapping[str, Any]) -> list[str]:
    lines = [f"less {comparison['workdir']} (* leaves out zero, at 95 %)"]
    for name, figures in named_targets(comparison).items():
        for figure in (name for name in figures if f"{name}_interval" in figures):
            interval = figures[f"{figure}_interval"]
            mark = "*" if interval and (interval[0] > 0 or interval[1] < 0) else ""
            lines.append(
                f"  {name:<10} {figure:<19} {_cell(figures[figure], 9, 5)}   {_interval(figures, figure, 5)} {mark}".rstrip()
            )
    return lines
