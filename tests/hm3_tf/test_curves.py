"""Points of curves against scikit-learn, on scores that lie in the middle of their bins."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from hm3_tf.curves import (
    operating_points,
    precision_recall_curve,
    reliability,
    roc_curve,
    score_shares,
)
from hm3_tf.metrics import RANGE, calibration_error
from tests.reference import sigmoid

BINS = 2 * RANGE * 64


def scored(rows=20_000, shift=-4.0, seed=0):
    """Returns (labels, log-odds, histogram) of a calibrated score of a rare event."""
    generator = np.random.default_rng(seed)
    bins = np.clip(((generator.normal(shift, 1.5, rows) + RANGE) * 64).astype(int), 0, BINS - 1)
    odds = (bins + 0.5) / 64 - RANGE
    labels = generator.random(rows) < sigmoid(odds)
    return labels, odds, np.stack([np.bincount(bins[labels == label], minlength=BINS) for label in (0, 1)])


def are_among(points, all_points):
    gaps = np.abs(points.T[:, np.newaxis] - all_points.T).max(axis=2).min(axis=1)
    return gaps.max() < 1e-12


def test_points_of_the_roc_curve_are_on_that_of_scikit_learn_and_hold_its_area():
    labels, odds, counts = scored()
    points = roc_curve(counts)
    assert are_among(points, np.stack(sk.roc_curve(labels, odds, drop_intermediate=False)[:2]))
    assert points[:, 0].tolist() == [0, 0] and points[:, -1].tolist() == [1, 1]
    assert (np.diff(points) >= 0).all() and points.shape[1] <= 403
    assert sk.auc(*points) == pytest.approx(sk.roc_auc_score(labels, odds), abs=1e-3)


def test_points_of_the_precision_recall_curve_are_on_that_of_scikit_learn():
    labels, odds, counts = scored()
    points = precision_recall_curve(counts)
    precision, recall, _ = sk.precision_recall_curve(labels, odds)
    assert are_among(points, np.stack([recall, precision]))
    assert points[0, -1] == 1 and points[1, -1] == pytest.approx(labels.mean())
    assert np.diff(points[0]).max() < 0.02, "recalls are spread out"


def test_thresholds_leave_out_equal_shares_of_a_class():
    _, _, counts = scored()
    above = operating_points(counts, label=1, points=11)
    share = above[1] / counts[1].sum()
    np.testing.assert_allclose(share, np.linspace(1, 0, 11), atol=counts[1].max() / counts[1].sum())
    assert (share >= np.linspace(1, 0, 11) - 1e-12).all() and (above[:, 0] == counts.sum(axis=1)).all()


def test_a_single_positive_has_curves():
    counts = np.zeros((2, 8), int)
    counts[0, :5], counts[1, 4] = 1, 1
    assert precision_recall_curve(counts).tolist() == [[1, 1], [1 / 2, 1 / 6]]
    assert roc_curve(counts)[:, np.flatnonzero(roc_curve(counts)[1])[0]] == pytest.approx([0.2, 1])


def test_bins_of_the_reliability_diagram_are_those_of_scikit_learn():
    labels, odds, counts = scored()
    bins = reliability(counts)
    observed, predicted = calibration_curve(labels, sigmoid(odds), n_bins=20, strategy="quantile")
    np.testing.assert_allclose(bins.predicted, predicted, rtol=0.02)
    np.testing.assert_allclose(bins.observed, observed, rtol=0.15, atol=1e-3)
    assert bins.rows.sum() == len(labels) and bins.positives.sum() == labels.sum()
    assert bins.rows.max() < 1.2 * bins.rows.min()


def test_the_gaps_of_the_reliability_diagram_are_the_calibration_error():
    _, _, counts = scored()
    bins = reliability(counts)
    gaps = np.abs(bins.observed - bins.predicted) @ bins.rows / bins.rows.sum()
    assert gaps == pytest.approx(calibration_error(counts), rel=1e-9)


def test_intervals_of_the_observed_rates_are_wilsons():
    _, _, counts = scored(rows=2_000)
    bins = reliability(counts)
    for rows, positives, low, high in zip(bins.rows, bins.positives, *bins.interval):
        expected = binomtest(int(positives), int(rows)).proportion_ci(method="wilson")
        assert (low, high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_histograms_of_scores_are_numpys():
    labels, odds, counts = scored()
    edges, shares = score_shares(counts, 0.25)
    for label in (0, 1):
        expected, _ = np.histogram(odds[labels == label], edges)
        np.testing.assert_allclose(shares[label], expected / (labels == label).sum())
    assert shares.sum(axis=1) == pytest.approx([1, 1]) and shares[:, [0, -1]].any(axis=0).all()


def test_a_histogram_of_no_rows_is_empty():
    edges, shares = score_shares(np.zeros((2, BINS), int), 0.25)
    assert edges.tolist() == [-RANGE] and shares.shape == (2, 0)
