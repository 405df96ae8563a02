"""GMCM, re-implemented from the abstract, against arithmetic by hand."""

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf import methods
from hm3_tf.config import TrainingConfig
from hm3_tf.errors import ConfigError
from hm3_tf.gmcm import MicroGraph, SharedLayers, adjacency, floored_propensity, micro_graph_terms
from hm3_tf.layers import ProbabilityGraph
from hm3_tf.model import build_model
from tests.conftest import tiny_config
from tests.reference import sigmoid

COUNTS = np.array([[10, 4, 0], [4, 8, 0], [0, 0, 0]])  # the third behavior never happened
LINK = (4 / 10 + 4 / 8) / 2


def test_the_adjacency_is_the_mean_share_normalized_by_the_degrees():
    # A + I is [[1, .45, 0], [.45, 1, 0], [0, 0, 1]], its degrees 1.45, 1.45 and 1.
    expected = [[1 / 1.45, LINK / 1.45, 0], [LINK / 1.45, 1 / 1.45, 0], [0, 0, 1]]
    np.testing.assert_allclose(adjacency(COUNTS), expected, rtol=1e-6)


def test_behaviors_that_never_happened_are_not_linked():
    np.testing.assert_array_equal(adjacency(np.zeros((4, 4), np.int64)), np.eye(4))


def test_counts_are_left_as_they_are():
    counts = COUNTS.copy()
    adjacency(counts)
    np.testing.assert_array_equal(counts, COUNTS)


def test_the_graph_is_two_convolutions_and_a_mean_and_its_logits_are_those_of_the_nodes_before():
    links = adjacency(COUNTS)
    layer = MicroGraph({"m.a": 0.5, "m.b": 0.1, "m.c": 0.2}, links, seed=3)
    inputs = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
    readout, logits = layer(inputs)
    w = {weight.name.split(":")[0].split("/")[-1]: weight.numpy().astype(np.float64) for weight in layer.weights}
    nodes = np.stack([np.maximum(inputs @ w["node_kernel"][i] + w["node_bias"][i], 0) for i in range(3)], 1)
    for i, (name, rate) in enumerate({"m.a": 0.5, "m.b": 0.1, "m.c": 0.2}.items()):
        expected = (nodes[:, i] @ w["logit_kernel"][i])[:, 0] + np.log(rate / (1 - rate))
        np.testing.assert_allclose(logits[name], expected, rtol=1e-4, atol=1e-5)
    for i in range(2):
        nodes = np.maximum(links @ nodes @ w[f"convolution_{i}"], 0)
    np.testing.assert_allclose(readout, nodes.mean(1), rtol=1e-4, atol=1e-5)
    assert readout.shape == (5, 64)


def test_the_adjacency_is_fixed():
    layer = MicroGraph({"m.a": 0.5, "m.b": 0.1, "m.c": 0.2}, adjacency(COUNTS), seed=3)
    layer(np.zeros((1, 4), np.float32))
    assert all(weight.trainable for weight in layer.weights)
    assert not any(weight.shape == (3, 3) for weight in layer.weights)


def test_shared_layers_drop_in_training_only_and_none_is_the_input():
    inputs = np.ones((4, 3), np.float32)
    layer = SharedLayers((400,), 0.5, seed=1)
    layer(inputs)
    layer.weights[1].assign_add(tf.ones(400))
    assert np.mean(layer(inputs, training=True).numpy() == 0) > np.mean(layer(inputs).numpy() == 0) + 0.2
    np.testing.assert_array_equal(SharedLayers((), 0.5, seed=1)(inputs), inputs)


def test_propensities_below_the_quantile_are_raised_and_no_others():
    p = np.linspace(0.001, 0.9, 200)
    result = floored_propensity(tf.constant(np.log(p), tf.float32)).numpy()
    raised = result > p * 1.0001
    assert 0 < raised.sum() <= 10 and raised[: raised.sum()].all()
    np.testing.assert_allclose(result[~raised], p[~raised], rtol=1e-5)
    assert result[0] == pytest.approx(np.quantile(p, 0.05), rel=0.1)


def test_equal_propensities_are_left_as_they_are():
    for p in (0.5, 1e-3, 1.0):
        np.testing.assert_allclose(floored_propensity(tf.fill([50], np.float32(np.log(p)))), p, rtol=1e-5)


LABELS = {"click": [1.0, 0.0, 1.0], "purchase": [1.0, 0.0, 0.0], "d_mi.a": [1.0, 0.0, 0.0], "d_mi.b": [0.0, 0.0, 1.0]}
LOGITS = {
    "click": [0.0, 0.0, 0.0],
    "purchase_given_click": [-1.0, 2.0, 0.5],
    "d_mi.a": [0.3, 1.0, -0.2],
    "d_mi.b": [-1.0, 0.0, 0.4],
}


def loss_terms():
    return micro_graph_terms(methods.GMCM, TrainingConfig())


def tensors(columns):
    return {name: tf.constant(values, tf.float32) for name, values in columns.items()}


def predictions(logits):
    return {"log_probs": ProbabilityGraph(methods.GMCM.graphs)(logits), "edge_logits": logits}


def test_the_conversion_is_weighted_by_the_propensity_and_the_micro_behaviors_are_averaged():
    result = {name: term(tensors(LABELS), predictions(tensors(LOGITS))) for name, term in loss_terms().items()}
    assert list(result) == ["purchase", "micro"]
    # Each propensity is 1/2: twice ln(1 + e) and ln(1 + e^0.5) on the clicked rows.
    np.testing.assert_allclose(result["purchase"], [2 * 1.313262, 0, 2 * 0.974077], rtol=1e-5)
    # Halves of ln(1 + e^-0.3) + ln(1 + e^-1) and of ln(1 + e^-0.2) + ln(1 + e^-0.4).
    np.testing.assert_allclose(result["micro"], [(0.554355 + 0.313262) / 2, 0, (0.598139 + 0.513015) / 2], rtol=1e-5)


def test_no_gradient_goes_into_the_propensity():
    logits = tensors(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(loss_terms()["purchase"](tensors(LABELS), predictions(logits)))
    found = tape.gradient(loss, logits, unconnected_gradients="zero")
    np.testing.assert_array_equal(found["click"], 0)
    expected = [2 * (sigmoid(-1.0) - 1), 0, 2 * sigmoid(0.5)]
    np.testing.assert_allclose(found["purchase_given_click"], expected, rtol=1e-5)


def test_the_nodes_are_the_behaviors_of_the_log_and_start_at_their_rates(data):
    statistics = data.statistics()["train"]
    model = build_model(tiny_config("gmcm"), data.schema, statistics)
    layer = model.network.get_layer("hm3/micro_graph")
    behaviors = statistics.co_occurrences(data.schema, "d_mi")
    names = ("d_mi.picture", "d_mi.qa", "d_mi.chat", "d_mi.comments", "d_mi.cart_button")
    assert set(behaviors.names) == set(names)
    clicks = statistics.rates()["click"] * statistics.rows
    start = next(w for w in layer.weights if "logit_bias" in w.name).numpy()
    np.testing.assert_allclose(sigmoid(start), (np.diag(behaviors.counts) + 0.5) / (clicks + 1), rtol=1e-5)


def test_a_log_without_micro_behaviors_is_refused(data):
    schema = type(data.schema)(data.schema.columns, tuple(v for v in data.schema.levels if v.name != "d_mi"))
    with pytest.raises(ConfigError, match="expected levels of the log, got 'd_mi'"):
        build_model(tiny_config("gmcm"), schema)
