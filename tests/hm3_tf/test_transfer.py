"""AITM against arithmetic by hand."""

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf import methods
from hm3_tf.config import TrainingConfig
from hm3_tf.errors import ConfigError
from hm3_tf.layers import ProbabilityGraph
from hm3_tf.transfer import TransferTowers, conditional_logit, transfer_terms
from tests.reference import sigmoid

GRAPH = methods.AITM.graph
RATES = {"click": 0.5, "purchase": 0.1}


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_the_conditional_is_the_ratio_of_the_levels():
    result = conditional_logit(
        tf.constant(logit([0.02, 1e-6]), tf.float32), tf.constant(logit([0.4, 0.01]), tf.float32)
    )
    np.testing.assert_allclose(sigmoid(result.numpy()), [0.05, 1e-4], rtol=1e-4)


def test_a_level_likelier_than_the_one_before_is_as_likely_as_that_but_for_a_millionth():
    level, before = tf.constant([2.0, 1.0]), tf.constant([0.5, 1.0])
    np.testing.assert_allclose(sigmoid(-conditional_logit(level, before).numpy()), 1e-6, rtol=0.1)


def test_the_chain_gives_back_what_the_towers_say():
    p = {"click": np.array([0.4, 0.03]), "purchase": np.array([0.1, 0.002])}
    levels = {level: tf.constant(logit(chance), tf.float32) for level, chance in p.items()}
    given = conditional_logit(levels["purchase"], levels["click"])
    chain = ProbabilityGraph((GRAPH,))({"click": levels["click"], "purchase_given_click": given})
    for level, chance in p.items():
        np.testing.assert_allclose(np.exp(chain["impression"][level][:, 0]), chance, rtol=1e-4)


def test_the_second_tower_attends_to_itself_and_to_what_the_first_hands_on():
    layer = TransferTowers(GRAPH, RATES, (3,), 0.0, seed=1)
    inputs = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
    result = layer(inputs)
    names = {w.name.split(":")[0].split("/")[-1]: w.numpy().astype(np.float64) for w in layer.weights}
    first, own = (np.maximum(inputs @ names["kernel_0"][i] + names["bias_0"][i], 0) for i in range(2))
    handed = np.maximum(first @ names["transfer"][0] + names["transfer_bias"][0], 0)
    pair = np.stack([own, handed], 1)
    query, key, value = (pair @ names[name] for name in ("query", "key", "value"))
    weights = softmax((query * key).sum(-1) / np.sqrt(3))
    state = (weights[..., np.newaxis] * value).sum(1)
    assert np.abs(weights - 0.5).max() > 1e-3
    for i, (level, last) in enumerate(zip(RATES, (first, state))):
        expected = (last @ names["kernel_1"][i])[:, 0] + names["bias_logit"][i]
        np.testing.assert_allclose(result[level], expected, rtol=1e-4, atol=1e-6)


def test_a_tower_without_hidden_layers_has_nothing_to_hand_on():
    with pytest.raises(ConfigError, match=r"model\.tower_units: expected at least one width"):
        TransferTowers(GRAPH, RATES, (), 0.0, seed=1)


def test_the_losses_are_those_of_the_towers_and_what_a_level_exceeds_the_one_before_by():
    logits = {"click": tf.constant([0.0, -1.0]), "purchase": tf.constant([-2.0, 1.0])}
    labels = {"click": tf.constant([1.0, 0.0]), "purchase": tf.constant([0.0, 0.0])}
    result = {name: term(labels, {"edge_logits": logits}) for name, term in terms().items()}
    assert list(result) == ["purchase", "calibrator"]
    # -ln(1 - sigmoid(-2)) = ln(1 + e^-2), ln(1 + e); sigmoid(1) - sigmoid(-1) = 0.4621 on the second row.
    np.testing.assert_allclose(result["purchase"], [0.126928, 1.313262], rtol=1e-5)
    np.testing.assert_allclose(result["calibrator"], [0, 0.462117], rtol=1e-5)


def terms():
    return transfer_terms(methods.AITM, TrainingConfig())


def test_the_calibrator_pulls_the_levels_together_and_only_where_they_are_in_the_wrong_order():
    logits = {"click": tf.constant([0.0, -1.0]), "purchase": tf.constant([-2.0, 1.0])}
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(terms()["calibrator"]({}, {"edge_logits": logits}))
    slope = sigmoid(1.0) * sigmoid(-1.0)
    gradients = tape.gradient(loss, logits)
    np.testing.assert_allclose(gradients["click"], [0, -slope], rtol=1e-5)
    np.testing.assert_allclose(gradients["purchase"], [0, slope], rtol=1e-5)


def test_the_calibrator_weighs_six_tenths():
    assert methods.AITM.loss_weights == {"calibrator": 0.6}
