"""The composite loss against arithmetic by hand."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf import methods
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError
from hm3_tf.layers import ProbabilityGraph
from hm3_tf.losses import CompositeLoss, cross_entropy
from tests import reference

# Three impressions: one without a click, one with a click and a micro behavior, one that goes through to the purchase.
LABELS = {
    "click": [0.0, 1.0, 1.0],
    "d_mi": [0.0, 1.0, 0.0],
    "d_ma": [0.0, 0.0, 1.0],
    "purchase": [0.0, 0.0, 1.0],
}
CHANCES = {
    "click": [0.5, 0.5, 0.25],
    "d_mi": [0.2, 0.4, 0.1],
    "d_ma": [0.1, 0.2, 0.05],
    "purchase": [0.01, 0.02, 0.002],
}
# -log of what happened: 1 - P where the label is 0, P where it is 1.
LOSSES = {
    "click": [-math.log(0.5), -math.log(0.5), -math.log(0.25)],
    "d_mi": [-math.log(0.8), -math.log(0.4), -math.log(0.9)],
    "d_ma": [-math.log(0.9), -math.log(0.8), -math.log(0.05)],
    "purchase": [-math.log(0.99), -math.log(0.98), -math.log(0.002)],
}
GRAPHS = methods.HM3.graphs


def tensors(columns):
    return {name: tf.constant(values, tf.float32) for name, values in columns.items()}


def pairs(chances):
    """Returns {level: (log P, log(1 - P)) [batch, 2]}."""
    p = {level: np.array(values) for level, values in chances.items()}
    return {level: tf.constant(np.log(np.stack([v, 1 - v], -1)), tf.float32) for level, v in p.items()}


def hm3_predictions():
    return {"log_probs": {"impression": pairs(CHANCES)}}


def random_case(graphs, rows=40, seed=0):
    """Returns labels that keep the gates, float32, and the logits of all edges, [rows] each."""
    generator = np.random.default_rng(seed)
    labels, open_ = {}, np.ones(rows, bool)
    for graph in graphs:
        for behavior in graph.behaviors:
            labels[behavior.name] = (generator.random(rows) < 0.6) & open_
            open_ = labels[behavior.name] if behavior.gate else open_
    edges = [edge for graph in graphs for edge in graph.edges]
    logits = {edge: generator.normal(0, 2, rows).astype(np.float32) for edge in edges}
    return {level: label.astype(np.float32) for level, label in labels.items()}, logits


def predict(graphs, logits):
    logits = tensors(logits)
    return {"log_probs": ProbabilityGraph(graphs)(logits), "edge_logits": logits}


def binary_cross_entropy(labels, logits):
    p = reference.sigmoid(logits)
    return -np.where(labels > 0, np.log(p), np.log1p(-p))


def test_the_cross_entropy_is_minus_the_log_of_what_happened():
    result = cross_entropy(tf.constant([1.0, 0.0]), pairs({"x": [0.25, 0.25]})["x"])
    np.testing.assert_allclose(result, [math.log(4), math.log(4 / 3)], rtol=1e-6)


def test_the_cross_entropy_is_exact_for_the_rarest_event():
    result = cross_entropy(tf.constant([1.0, 0.0]), tf.constant([[-80.0, -1e-35], [-80.0, -1e-35]]))
    np.testing.assert_allclose(result, [80.0, 1e-35], rtol=1e-6)


def test_every_level_has_the_cross_entropy_of_every_impression():
    result = CompositeLoss(GRAPHS, {}).level_losses(tensors(LABELS), hm3_predictions())
    assert list(result) == ["click", "d_mi", "d_ma", "purchase"]
    for level, expected in LOSSES.items():
        np.testing.assert_allclose(result[level], expected, rtol=1e-5)


def test_the_loss_of_hm3_is_the_sum_of_four_means_over_impressions():
    loss = CompositeLoss(GRAPHS, {})(tensors(LABELS), hm3_predictions())
    # (0.6931 + 0.6931 + 1.3863 + 0.2231 + 0.9163 + 0.1054 + 0.1054 + 0.2231 + 2.9957 + 0.0101 + 0.0202 + 6.2146) / 3
    assert float(loss) == pytest.approx(13.5865 / 3, abs=1e-4)
    assert float(loss) == pytest.approx(sum(sum(losses) for losses in LOSSES.values()) / 3, rel=1e-5)


def test_the_loss_weights_scale_the_levels():
    loss = CompositeLoss(GRAPHS, {"purchase": 3.0, "d_mi": 0.0, "d_ma": 0.5})(tensors(LABELS), hm3_predictions())
    expected = sum(LOSSES["click"]) + 0.5 * sum(LOSSES["d_ma"]) + 3 * sum(LOSSES["purchase"])
    assert float(loss) == pytest.approx(expected / 3, rel=1e-5)


def test_the_levels_are_reported_without_their_weights():
    weighted = CompositeLoss(GRAPHS, {"purchase": 3.0}).level_losses(tensors(LABELS), hm3_predictions())
    np.testing.assert_allclose(weighted["purchase"], LOSSES["purchase"], rtol=1e-5)


def test_sample_weights_scale_rows_and_a_filling_row_counts_as_nothing():
    weights = tf.constant([2.0, 0.0, 0.5])
    loss = CompositeLoss(GRAPHS, {})(tensors(LABELS), hm3_predictions(), sample_weight=weights)
    rows = [sum(losses[row] for losses in LOSSES.values()) for row in range(3)]
    # The mean is over the rows of the batch, weight 0 included, so that replicas add up to the whole.
    assert float(loss) == pytest.approx((2 * rows[0] + 0.5 * rows[2]) / 3, rel=1e-5)


def test_the_parts_of_a_batch_add_up_to_the_whole():
    labels, logits = random_case(GRAPHS)
    task = CompositeLoss(GRAPHS, {"d_ma": 2.0}, edge_loss_weight=0.3)
    whole = task(tensors(labels), predict(GRAPHS, logits))
    parts = [({k: v[i::2] for k, v in labels.items()}, {k: v[i::2] for k, v in logits.items()}) for i in (0, 1)]
    halves = [task(tensors(some), predict(GRAPHS, those)) / 2 for some, those in parts]
    assert float(sum(halves)) == pytest.approx(float(whole), rel=1e-6)


def test_base_learns_the_purchase_from_clicked_rows_only():
    labels = {"click": [1.0, 0.0, 1.0], "purchase": [1.0, 0.0, 0.0]}
    click, purchase = [0.5, 0.25, 0.5], [0.1, 0.9, 0.2]
    predictions = {"log_probs": {"impression": pairs({"click": click}), "click": pairs({"purchase": purchase})}}
    task = CompositeLoss(methods.BASE.graphs, {})
    losses = task.level_losses(tensors(labels), predictions)
    np.testing.assert_allclose(losses["click"], [-math.log(0.5), -math.log(0.75), -math.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(losses["purchase"], [-math.log(0.1), 0, -math.log(0.8)], rtol=1e-6)
    total = (2 * math.log(2) - math.log(0.75) - math.log(0.1) - math.log(0.8)) / 3
    assert float(task(tensors(labels), predictions)) == pytest.approx(total, rel=1e-6)


def test_the_purchase_network_of_base_has_no_gradient_on_rows_without_a_click():
    labels, logits = random_case(methods.BASE.graphs)
    edge = tf.constant(logits["purchase_given_click"])
    with tf.GradientTape() as tape:
        tape.watch(edge)
        loss = CompositeLoss(methods.BASE.graphs, {})(
            tensors(labels), predict(methods.BASE.graphs, {**logits, "purchase_given_click": edge})
        )
    gradient = tape.gradient(loss, edge).numpy()
    clicked = labels["click"] > 0
    np.testing.assert_array_equal(gradient[~clicked], 0)
    expected = (reference.sigmoid(edge.numpy()) - labels["purchase"])[clicked] / len(clicked)
    np.testing.assert_allclose(gradient[clicked], expected, rtol=1e-4, atol=1e-7)


def test_esmm_learns_the_purchase_from_every_row():
    labels, logits = random_case(methods.ESMM.graphs)
    p = reference.sigmoid(logits["click"]) * reference.sigmoid(logits["purchase_given_click"])
    losses = CompositeLoss(methods.ESMM.graphs, {}).level_losses(tensors(labels), predict(methods.ESMM.graphs, logits))
    expected = -np.where(labels["purchase"] > 0, np.log(p), np.log1p(-p))
    np.testing.assert_allclose(losses["purchase"], expected, rtol=1e-5)


def test_the_full_path_likelihood_is_six_cross_entropies_each_on_the_rows_that_reach_its_edge():
    labels, logits = random_case(GRAPHS)
    click, d_mi, d_ma = (labels[level] > 0 for level in ("click", "d_mi", "d_ma"))
    reached = {
        "click": np.ones_like(click),
        "d_mi_given_click": click,
        "d_ma_given_d_mi": click & d_mi,
        "d_ma_given_no_d_mi": click & ~d_mi,
        "purchase_given_d_ma": click & d_ma,
        "purchase_given_no_d_ma": click & ~d_ma,
    }
    assert all(rows.any() for rows in reached.values())
    total = sum(
        (rows * binary_cross_entropy(labels[edge.split("_given_")[0]], logits[edge])).sum()
        for edge, rows in reached.items()
    )
    predictions = predict(GRAPHS, logits)
    without = CompositeLoss(GRAPHS, {})(tensors(labels), predictions)
    with_edges = CompositeLoss(GRAPHS, {}, edge_loss_weight=0.25)(tensors(labels), predictions)
    assert float(with_edges - without) == pytest.approx(0.25 * total / len(click), rel=1e-4)


def test_the_full_path_likelihood_of_base_is_its_two_losses_again():
    labels, logits = random_case(methods.BASE.graphs)
    predictions = predict(methods.BASE.graphs, logits)
    once, twice = (CompositeLoss(methods.BASE.graphs, {}, w)(tensors(labels), predictions) for w in (0.0, 1.0))
    assert float(twice) == pytest.approx(2 * float(once), rel=1e-6)


def test_the_full_path_likelihood_tells_towers_apart_that_the_levels_do_not():
    """Equal P(d_ma) from other y3 and y5: the paper's loss is the same, the full-path one is not."""
    labels = {"click": [1.0], "d_mi": [1.0], "d_ma": [1.0], "purchase": [0.0]}
    shared = {"click": [0.0], "d_mi_given_click": [0.0], "purchase_given_d_ma": [0.0], "purchase_given_no_d_ma": [0.0]}
    logit = lambda p: [math.log(p / (1 - p))]  # noqa: E731
    even = {**shared, "d_ma_given_d_mi": logit(0.4), "d_ma_given_no_d_mi": logit(0.4)}
    apart = {**shared, "d_ma_given_d_mi": logit(0.7), "d_ma_given_no_d_mi": logit(0.1)}
    paper, full = (
        [float(CompositeLoss(GRAPHS, {}, weight)(tensors(labels), predict(GRAPHS, case))) for case in (even, apart)]
        for weight in (0.0, 1.0)
    )
    assert paper[0] == pytest.approx(paper[1], rel=1e-6)
    assert full[0] - full[1] == pytest.approx(math.log(0.7 / 0.4), rel=1e-4)


def test_sample_weights_scale_the_full_path_likelihood_too():
    labels, logits = random_case(GRAPHS, rows=2)
    task = CompositeLoss(GRAPHS, {}, edge_loss_weight=1.0)
    second = [{name: values[1:] for name, values in columns.items()} for columns in (labels, logits)]
    weighted = task(tensors(labels), predict(GRAPHS, logits), sample_weight=tf.constant([0.0, 1.0]))
    assert float(weighted) == pytest.approx(float(task(tensors(second[0]), predict(GRAPHS, second[1]))) / 2, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 20.0, 80.0])
def test_the_loss_and_its_gradients_are_finite_for_logits_up_to(scale):
    labels, logits = random_case(GRAPHS)
    logits = {edge: tf.constant(scale * np.sign(values)) for edge, values in logits.items()}
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = CompositeLoss(GRAPHS, {}, edge_loss_weight=1.0)(tensors(labels), predict(GRAPHS, logits))
    assert np.isfinite(loss)
    for edge, gradient in tape.gradient(loss, logits).items():
        assert np.isfinite(gradient).all(), edge


def test_a_weight_of_a_level_that_is_not_there_is_refused_with_a_hint():
    message = "training.loss_weights: expected a level, got 'purchas'; did you mean 'purchase'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        CompositeLoss(GRAPHS, {"purchas": 1.0})


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_that_is_not_at_least_zero_is_refused(weight):
    message = f"training.loss_weights.d_mi: expected a weight of at least 0, got {weight}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        CompositeLoss(GRAPHS, {"d_mi": weight})


def test_a_negative_weight_of_the_full_path_likelihood_is_refused():
    with pytest.raises(ConfigError, match=r"training\.edge_loss_weight.*-0\.5"):
        CompositeLoss(GRAPHS, {}, edge_loss_weight=-0.5)


def test_the_full_path_likelihood_is_no_level_of_the_loss_weights():
    with pytest.raises(ConfigError, match=r"training\.loss_weights: expected a level, got 'edge_loss_weight'"):
        CompositeLoss(GRAPHS, {"edge_loss_weight": 3.0})


def test_a_graph_of_levels_that_the_labels_lack_is_refused_with_a_hint():
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("purchases")))
    labels, logits = random_case((graph,))
    labels = {"click": labels["click"], "purchase": labels["purchases"]}
    task = CompositeLoss((graph,), {}, edge_loss_weight=1.0)
    with pytest.raises((ConfigError, KeyError), match="purchases"):
        task(tensors(labels), predict((graph,), logits))
