"""What the plots say in words, which is what they draw."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hm3_tf import curves
from hm3_tf.report import plots

TARGETS = ("pctr", "pcvr", "pctcvr")


def one(made, key):
    (plot,) = [plot for plot in made if plot.key == key]
    return plot


def without_positives(run):
    counts = [np.stack([target.sum(axis=0), np.zeros(target.shape[1], int)]) for target in run.evaluation.counts]
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, counts=counts))


def test_roc_plots_tell_the_auc_and_a_point_of_each_run(report):
    made = plots.roc_plots(report.runs)
    assert [plot.key for plot in made] == [f"roc-{target}" for target in TARGETS]
    for target in TARGETS:
        words = one(made, f"roc-{target}").words
        for run in report.runs:
            low, high = run.targets[target]["auc_interval"] or (None, None)
            ends = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""
            assert f"{run.name}: AUC {run.targets[target]['auc']:.4f}{ends};" in words
    points = curves.roc_curve(report.runs[0].counts["pctr"])
    found = 100 * np.interp(0.1, *points)
    assert f"it finds {found:.3g} % of the positives" in one(made, "roc-pctr").words


def test_precision_recall_plots_tell_the_area_and_the_rate(report):
    words = one(plots.precision_recall_plots(report.runs), "pr-pctcvr").words
    figures = report.runs[1].targets["pctcvr"]
    assert f"esmm: area {figures['pr_auc']:.4f}" in words and f"{100 * figures['rate']:.3g} % of the rows" in words


def test_reliability_plots_tell_the_calibration_error(report):
    plot = one(plots.reliability_plots(report.runs), "reliability-pctr")
    assert f"hm3: calibration error {report.runs[0].targets['pctr']['ece']:.5f}" in plot.words
    assert "in 20 bins of equal numbers of rows" in plot.words and "Wilson" in plot.caption


def test_every_target_of_every_run_has_a_histogram(report):
    made = plots.histogram_plots(report.runs)
    assert len(made) == sum(len(run.counts) for run in report.runs) == 8
    assert made[3].title == "Scores, P(d_mi), hm3"
    counts = report.runs[0].counts["P(d_mi)"]
    assert f"of {counts[0].sum():,} negatives" in made[3].words and f"of {counts[1].sum():,} positives" in made[3].words
    assert plots.histogram_plots(report.runs[:1])[0].title == "Scores, pctr"


def test_the_funnel_tells_observed_and_predicted_rates_from_click_to_purchase(report):
    funnel, ratios = plots.funnel_plots(report.runs)
    levels = report.runs[0].evaluation.metrics["levels"]
    for level, figures in levels.items():
        shown = f"{level}: observed {100 * figures['rate']:.3g} %, predicted {100 * figures['prediction']:.3g} % by hm3"
        assert shown in funnel.words
        assert f"{level} {figures['pcoc']:.3f}" in ratios.words
    assert re.findall(r"(\w+): observed", funnel.words) == list(levels)
    assert "by esmm" in funnel.words.split("purchase")[1]


def test_the_funnel_has_room_for_what_is_observed_and_predicted():
    low, high = plots._limits([0.03, 0.001, 0.2, None, 0.0])
    assert 0 < low < 0.001 and high > 0.2
    assert plots._limits([None, 0.0]) is None


def test_learning_plots_tell_the_first_and_the_last_of_the_history(report):
    made = plots.learning_plots(report.runs)
    assert [plot.key for plot in made] == ["learning-loss", *(f"learning-{target}" for target in TARGETS)]
    ends = [line for line in report.runs[0].history if line.get("epoch_end")]
    first, last = (f"{line['step']:,} steps {line['validation']['pctcvr']['auc']:.4f}" for line in ends)
    assert f"hm3: {first}, {last}" in made[3].words
    intervals = [line for line in report.runs[0].history if "epoch_end" not in line]
    assert f"hm3: {intervals[0]['step']:,} steps {intervals[0]['loss']:.4f}" in made[0].words


def test_a_run_without_a_history_has_no_learning_plots(report):
    assert plots.learning_plots([dataclasses.replace(report.runs[0], history=[])]) == []


def test_a_long_history_is_thinned_to_means(report):
    history = [{"step": step, "loss": step / 2} for step in range(1000)]
    plot = plots.learning_plots([dataclasses.replace(report.runs[0], history=history)])[0]
    assert plot.words == "hm3: 2 steps 1.0000, 997 steps 498.5000, lowest 1.0000, highest 498.5000."


def test_slices_have_a_plot_for_each_target(report):
    made = plots.slice_plots(report.runs, "position", 3)
    assert [plot.key for plot in made] == [f"slice-3-{target}" for target in TARGETS]
    for value, figures in report.runs[1].evaluation.metrics["slices"]["position"].items():
        assert f"{value} {figures['pctr']['auc']:.4f}" in made[0].words


def test_lines_of_figures_are_in_the_order_of_the_funnel_whatever_the_first_run_has(report):
    _, ratios = plots.funnel_plots(report.runs[::-1])
    svg = ElementTree.fromstring(ratios.svg)
    texts = [part.text for part in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ("click", "d_mi", "d_ma", "purchase")] == [
        "click",
        "d_mi",
        "d_ma",
        "purchase",
    ]


def test_differences_have_a_plot_of_auc_and_one_of_log_loss(report):
    auc, loss = plots.difference_plots(report.runs)
    assert f"hm3 less esmm: pctr {report.runs[1].differences['pctr']['auc']:.5f}" in auc.words
    assert "hm3 is better right of" in auc.caption and "hm3 is better left of" in loss.caption


@pytest.mark.parametrize("make", [plots.roc_plots, plots.precision_recall_plots, plots.reliability_plots])
def test_a_target_of_one_class_says_that_nothing_is_drawn(report, make):
    for plot in make([without_positives(run) for run in report.runs]):
        assert plot.words == "Nothing is drawn: there are no rows of both classes."


def test_histograms_and_a_funnel_of_one_class_are_drawn(report):
    runs = [without_positives(run) for run in report.runs]
    assert all(plot.words == "There are no rows of both classes." for plot in plots.histogram_plots(runs))
    figures = dict.fromkeys(report.runs[0].targets["pctr"], None)
    metrics = {**report.runs[0].evaluation.metrics, "levels": {"click": figures, "purchase": figures}}
    empty = dataclasses.replace(runs[0], evaluation=dataclasses.replace(runs[0].evaluation, metrics=metrics))
    assert plots.funnel_plots([empty])[1].key == "funnel-pcoc"
    assert "click undefined" in plots.funnel_plots([empty])[1].words
