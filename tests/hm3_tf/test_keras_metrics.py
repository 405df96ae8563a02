"""The Keras metric against the plain accumulator."""

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.keras_metrics import TargetMetric
from tests.hm3_tf.test_metrics import pairs_of_odds, rare_case, result


def test_batches_have_the_figures_of_the_plain_accumulator():
    labels, odds = rare_case(rate=0.05)
    among = np.arange(len(labels)) % 3 > 0
    pairs = pairs_of_odds(odds).astype(np.float32)
    metric = TargetMetric("pcvr")
    for part in np.array_split(np.arange(len(labels)), 7):
        metric.update_state(*(tf.constant(x[part]) for x in (labels.astype(np.float32), pairs, among)))
    expected = result(labels[among], pairs[among])
    found = {name: float(value) for name, value in metric.result().items()}
    assert list(found) == [
        f"pcvr_{name}" for name in ("auc", "pr_auc", "log_loss", "normalized_entropy", "pcoc", "ece")
    ]
    for name, tolerance in {"auc": 1e-4, "pr_auc": 1e-3, "ece": 1e-3}.items():
        assert found[f"pcvr_{name}"] == pytest.approx(expected[name], rel=tolerance), name
    for name in ("log_loss", "normalized_entropy", "pcoc"):
        assert found[f"pcvr_{name}"] == pytest.approx(expected[name], rel=1e-6), name


def test_scores_beyond_the_range_count_in_the_outermost_bins():
    metric = TargetMetric("pctr")
    pairs = tf.constant([[0.0, -1e9], [-1e9, 0.0]])  # log-odds that no int32 holds once they are binned
    metric.update_state(tf.constant([1.0, 0.0]), pairs, tf.constant([True, True]))
    assert float(metric.result()["pctr_auc"]) == 1


def test_a_reset_metric_knows_nothing():
    metric = TargetMetric("pctr")
    metric.update_state(tf.constant([1.0]), tf.constant([[-1.0, -0.4]]), tf.constant([True]))
    metric.reset_state()
    assert float(tf.reduce_sum(metric.counts)) == float(tf.reduce_sum(metric.sums)) == 0
