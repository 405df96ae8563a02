"""The figures against scikit-learn, a count over all pairs, and arithmetic by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from hm3_tf.metrics import auc, binary_metrics
from tests import reference

ROWS = 20_000


def log_pairs(p):
    p = np.asarray(p, np.float64)
    return np.stack([np.log(p), np.log1p(-p)], axis=-1)


def rare_case(rows=ROWS, rate=0.001, seed=0):
    """Returns labels with a share `rate` of positives and log-scores down to -80, which know something of them."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(rows, bool)
    labels[generator.choice(rows, int(rows * rate), replace=False)] = True
    scores = np.clip(generator.normal(-40, 15, rows) + 15 * labels, -80, -1e-3)
    return labels, scores.astype(np.float32)


def test_the_auc_at_one_positive_in_a_thousand_and_scores_down_to_minus_eighty_is_exact():
    labels, scores = rare_case()
    assert labels.sum() == 20 and scores.min() == -80
    assert auc(labels, scores) == pytest.approx(reference.auc(labels, scores), abs=1e-12)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_auc_of_a_large_log_is_that_of_scikit_learn():
    labels, scores = rare_case(rows=300_000, seed=1)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("values", [1, 2, 3, 10])
def test_ties_count_half(values):
    generator = np.random.default_rng(values)
    labels, scores = generator.random(500) < 0.1, generator.integers(0, values, 500).astype(np.float32)
    assert auc(labels, scores) == pytest.approx(reference.auc(labels, scores), abs=1e-12)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


cases = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30)


@settings(deadline=None, derandomize=True)
@given(cases.filter(lambda rows: len({label for label, _ in rows}) == 2))
def test_the_auc_is_the_share_of_pairs_in_order(rows):
    labels, scores = (np.array(column) for column in zip(*rows))
    assert auc(labels, scores.astype(float)) == pytest.approx(reference.auc(labels, scores), abs=1e-12)


def test_the_auc_by_hand():
    # Positives 3 and 2 against negatives 1 and 2: win, win, win, tie.
    assert auc(np.array([True, False, True, False]), np.array([3.0, 1.0, 2.0, 2.0])) == 3.5 / 4


@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_the_auc_of_one_class_does_not_exist(labels):
    assert auc(np.array(labels, bool), np.zeros(len(labels))) is None


def test_probabilities_too_small_for_a_float_are_still_ranked():
    labels = np.array([False, True, False])
    scores = np.array([-110.0, -105.0, -120.0], np.float32)
    assert (np.exp(scores) == 0).all()
    assert binary_metrics(labels, np.stack([scores, np.zeros(3)], -1))["auc"] == 1


def test_the_figures_by_hand():
    figures = binary_metrics(np.array([True, False, False, False]), log_pairs([0.5, 0.25, 0.2, 0.25]))
    assert list(figures) == ["rows", "positives", "rate", "prediction", "pcoc", "auc", "log_loss"]
    assert (figures["rows"], figures["positives"], figures["rate"], figures["auc"]) == (4, 1, 0.25, 1)
    assert figures["prediction"] == pytest.approx(0.3)  # (0.5 + 0.25 + 0.2 + 0.25) / 4
    assert figures["pcoc"] == pytest.approx(1.2)  # 0.3 / 0.25: predicted clicks over clicks
    # -(log 0.5 + log 0.75 + log 0.8 + log 0.75) / 4
    assert figures["log_loss"] == pytest.approx((math.log(2) + 2 * math.log(4 / 3) + math.log(1.25)) / 4)


def test_the_figures_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    p = generator.beta(0.5, 20, ROWS)
    labels = generator.random(ROWS) < p
    figures = binary_metrics(labels, log_pairs(p))
    assert figures["log_loss"] == pytest.approx(log_loss(labels, p), rel=1e-9)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
    assert figures["pcoc"] == pytest.approx(p.mean() / labels.mean(), rel=1e-12)


def test_the_log_loss_knows_no_smallest_probability():
    # scikit-learn and Keras clip P; a purchase at log P = -80 costs 80 nats, and the others nothing that can be seen.
    labels = np.zeros(1_000, bool)
    labels[7] = True
    pairs = np.tile(np.array([-80.0, -math.exp(-80)], np.float32), (1_000, 1))
    assert binary_metrics(labels, pairs)["log_loss"] == pytest.approx(80 / 1_000, rel=1e-12)


def test_float32_predictions_are_summed_in_float64():
    rows = 400_000
    pairs = np.tile(log_pairs([0.001]).astype(np.float32), (rows, 1))
    figures = binary_metrics(np.arange(rows) % 1_000 == 0, pairs)
    assert figures["prediction"] == pytest.approx(float(np.exp(np.float64(pairs[0, 0]))), rel=1e-12)
    assert figures["pcoc"] == pytest.approx(1, rel=1e-6)


def test_labels_may_be_numbers():
    assert auc(np.array([1, 0, 1, 0]), np.array([3.0, 1.0, 2.0, 2.0])) == 3.5 / 4
    labels, pairs = np.array([True, False, False, False]), log_pairs([0.5, 0.25, 0.2, 0.25])
    assert binary_metrics(labels.astype(np.float32), pairs) == binary_metrics(labels, pairs)


def test_figures_that_do_not_exist_are_none():
    empty = binary_metrics(np.zeros(0, bool), np.zeros((0, 2)))
    assert empty == dict.fromkeys(("rate", "prediction", "pcoc", "auc", "log_loss")) | {"rows": 0, "positives": 0}
    none_happened = binary_metrics(np.zeros(3, bool), log_pairs([0.5, 0.5, 0.5]))
    assert none_happened["pcoc"] is None and none_happened["auc"] is None
    assert none_happened["log_loss"] == pytest.approx(math.log(2)) and none_happened["rate"] == 0
