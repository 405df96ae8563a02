"""Differences of two models on the same rows."""

import numpy as np
import pytest

from hm3_tf.compare import Comparison
from hm3_tf.errors import ConfigError, DataError
from hm3_tf.tally import Rows, Tally
from tests.hm3_tf.test_metrics import pairs_of_odds
from tests.reference import auc, sigmoid

LEVELS = ("click", "d_ma", "purchase")


def rows(generator, users=300, each=10):
    """Returns rows of a log of three nested levels, and the odds that made them [rows, 4] (the levels, then pcvr)."""
    odds = generator.normal((-0.5, 0.0, 0.0), 1, (users * each, 3))
    happened = np.cumprod(generator.random(odds.shape) < sigmoid(odds), axis=1) > 0
    p = np.cumprod(sigmoid(odds), axis=1)
    p = np.concatenate([p, p[:, 2:] / p[:, :1]], axis=1)
    groups = np.repeat(generator.integers(0, 2**63, users).astype(np.uint64), each)
    return groups, happened, np.log(p) - np.log1p(-p)


def predicted(groups, happened, odds):
    return Rows(happened, np.stack([pairs_of_odds(column) for column in odds.T], axis=1), groups)


def compared(first: Rows, second: Rows, levels=LEVELS):
    tally, other, comparison = Tally(LEVELS, True), Tally(levels, True), Comparison(LEVELS, levels)
    for part in np.array_split(np.arange(len(first)), 3):
        tally.update(first[part])
        other.update(second[part])
        comparison.update(first[part], second[part])
    return tally.result(), comparison.result(tally.estimates(), other.estimates())


def test_the_difference_is_that_of_the_figures_and_a_worse_model_is_told_apart():
    generator = np.random.default_rng(0)
    groups, happened, odds = rows(generator)
    first, second = (
        predicted(groups, happened, odds),
        predicted(groups, happened, odds + generator.normal(0, 2, odds.shape)),
    )
    tally = Tally(LEVELS, grouped=True)
    tally.update(second)
    alone, difference = compared(first, second)
    for target, worse in tally.result().items():
        if target in ("pctr", "pcvr", "pctcvr"):
            assert difference[target]["ece"] == pytest.approx(alone[target]["ece"] - worse["ece"], abs=1e-12)
            for name in ("auc", "pr_auc", "log_loss", "normalized_entropy", "pcoc", "gauc", "gauc_unweighted"):
                expected = alone[target][name] - worse[name]
                assert difference[target][name] == pytest.approx(expected, abs=1e-12), (target, name)
                low, high = difference[target][f"{name}_interval"]
                assert low < expected < high, (target, name)
            for name in ("auc", "gauc", "log_loss"):
                low, high = difference[target][f"{name}_interval"]
                assert low > 0 or high < 0, (target, name)


def test_a_model_compared_with_itself_differs_in_nothing():
    first = predicted(*rows(np.random.default_rng(1)))
    _, difference = compared(first, first)
    for name, value in difference["pcvr"].items():
        if name.endswith("_interval"):
            assert value == (None if name == "ece_interval" else [0, 0]), name


def test_the_paired_interval_is_narrower_than_that_of_a_model_alone():
    generator = np.random.default_rng(2)
    groups, happened, odds = rows(generator)
    alone, difference = compared(
        predicted(groups, happened, odds), predicted(groups, happened, odds + generator.normal(0, 0.1, odds.shape))
    )
    for name in ("auc", "log_loss", "pcoc", "gauc"):
        widths = [np.diff(part["pctr"][f"{name}_interval"])[0] for part in (difference, alone)]
        assert widths[0] < widths[1] / 2, name


def test_the_intervals_of_no_difference_hold_zero_in_95_percent_of_sets():
    generator = np.random.default_rng(3)
    names = ("auc", "log_loss", "gauc")
    held = dict.fromkeys(names, 0)
    sets = 60
    for _ in range(sets):
        groups, happened, odds = rows(generator, users=200, each=5)
        noisy = [predicted(groups, happened, odds + generator.normal(0, 0.5, odds.shape)) for _ in range(2)]
        tallies, comparison = [Tally(LEVELS, True, resolution=512) for _ in noisy], Comparison(LEVELS, LEVELS)
        for tally, predictions in zip(tallies, noisy):
            tally.update(predictions)
        comparison.update(*noisy)
        difference = comparison.result(*(tally.estimates() for tally in tallies))["pctr"]
        for name in names:
            low, high = difference[f"{name}_interval"]
            held[name] += low <= 0 <= high
    assert all(0.87 <= count / sets < 1 for count in held.values()), held


def test_models_of_other_levels_are_compared_where_they_meet():
    groups, happened, odds = rows(np.random.default_rng(4))
    second = predicted(groups, happened[:, [0, 2]], odds[:, [0, 2, 3]])
    alone, difference = compared(predicted(groups, happened, odds), second, levels=("click", "purchase"))
    assert list(difference["levels"]) == ["click", "purchase"]
    assert difference["pctcvr"]["auc"] == 0 and difference["pcvr"]["rows"] == alone["pcvr"]["rows"]


def test_too_few_rows_have_differences_without_intervals():
    groups, happened, odds = rows(np.random.default_rng(5), users=5)
    first, second = predicted(groups, happened, odds), predicted(groups, happened, -odds)
    _, difference = compared(first, second)
    assert difference["pctcvr"]["too_small"] and difference["pctcvr"]["auc_interval"] is None
    expected = auc(happened[:, 2], odds[:, 2]) - auc(happened[:, 2], -odds[:, 2])
    assert difference["pctcvr"]["auc"] == pytest.approx(expected, abs=0.01)


def test_rows_that_do_not_stand_side_by_side_are_refused():
    groups, happened, odds = rows(np.random.default_rng(6))
    first = predicted(groups, happened, odds)
    for second in (first[np.arange(len(first)) > 0], predicted(groups, np.roll(happened, 1, axis=0), odds)):
        with pytest.raises(DataError, match="expected the same clicks and conversions of both models, got 3,000 rows"):
            Comparison(LEVELS, LEVELS).update(first, second)


def test_runs_of_other_events_are_not_compared():
    with pytest.raises(
        ConfigError, match="expected a run with the click 'click' and the conversion 'purchase', got one"
    ):
        Comparison(LEVELS, ("click", "apply"))
