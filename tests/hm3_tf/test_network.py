"""The network: what it starts from, what shares what, and the reductions of one method to another."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from hm3_tf import methods
from hm3_tf.config import ModelConfig
from hm3_tf.features import HashedFeature, NumericFeature
from hm3_tf.network import build_network, network_inputs
from tests import reference

FEATURES = (
    HashedFeature("user", "int64", 50, "user", "user", 4),
    HashedFeature("item", "int64", 40, "item", "item", 4),
    HashedFeature("seen", "int64", 40, "item", "item", 4, length=3),
    NumericFeature("price", (10.0,), (4.0,)),
    NumericFeature("vector", (0.0, 1.0), (1.0, 2.0), length=2),
)
CONFIG = ModelConfig(tower_units=(8, 4), dropout=0.0, embedding_dim=4)
RATES = {
    "click": 0.1,
    "d_mi_given_click": 0.25,
    "d_ma_given_d_mi": 0.2,
    "d_ma_given_no_d_mi": 0.1,
    "d_ma_given_click": 0.12,
    "purchase_given_d_ma": 0.24,
    "purchase_given_no_d_ma": 0.005,
    "purchase_given_click": 0.03,
}


def rates_of(method):
    return {edge: RATES.get(edge, 0.3) for graph in method.graphs for edge in graph.edges}


def build(method=methods.HM3, features=FEATURES, **options):
    config = dataclasses.replace(CONFIG, **{k: options.pop(k) for k in ("cross_layers", "dropout") if k in options})
    return build_network(method, features, rates_of(method), config, **options)


def batch(rows=64, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "user": generator.integers(0, 50, rows).astype(np.int32),
        "item": generator.integers(0, 40, rows).astype(np.int32),
        "seen": generator.integers(0, 40, (rows, 3)).astype(np.int32),
        "price": generator.normal(10, 4, rows).astype(np.float32),
        "vector": generator.normal(0, 1, (rows, 2)).astype(np.float32),
    }


def shake(network, seed=0):
    """Gives every weight a random value."""
    generator = np.random.default_rng(seed)
    network.set_weights([generator.normal(0, 0.5, w.shape) for w in network.get_weights()])


def test_inputs_have_the_shapes_and_dtypes_of_the_features():
    inputs = network_inputs(FEATURES)
    assert {name: (tuple(tensor.shape), tensor.dtype.name) for name, tensor in inputs.items()} == {
        "user": ((None,), "int32"),
        "item": ((None,), "int32"),
        "seen": ((None, 3), "int32"),
        "price": ((None,), "float32"),
        "vector": ((None, 2), "float32"),
    }


@pytest.mark.parametrize("name", ["base", "hm3"])
def test_predictions_are_the_recursion_over_the_edge_logits(name):
    method, inputs = methods.METHODS[name], batch()
    network = build(method)
    shake(network)
    predictions = network(inputs)
    logits = {edge: tensor.numpy() for edge, tensor in predictions["edge_logits"].items()}
    assert set(logits) == {edge for graph in method.graphs for edge in graph.edges}
    for root, chain in reference.PAPER_CHAINS[name]:
        for level, (p, not_p) in reference.probabilities(chain, logits, root=root).items():
            pair = np.exp(predictions["log_probs"][root][level])
            np.testing.assert_allclose(pair, np.stack([p, not_p], -1), rtol=1e-5)


@pytest.mark.parametrize("name", methods.CHAINS)
def test_an_untrained_network_predicts_about_the_base_rates(name):
    method = methods.METHODS[name]
    logits = {edge: np.log(rate / (1 - rate)) for edge, rate in rates_of(method).items()}
    expected = {
        level: p
        for root, chain in reference.PAPER_CHAINS[name]
        for level, (p, _) in reference.probabilities(chain, logits, root=root).items()
    }
    log_probs = build(method)(batch(512))["log_probs"]
    for graph in method.graphs:
        for level in graph.levels:
            mean = np.exp(log_probs[graph.root][level][:, 0]).mean()
            assert mean == pytest.approx(expected[level], rel=0.4), level  # random towers move logits by some tenths


def copied(towers_from, towers_to, pairs):
    """Copies towers: {index in `towers_from`: indices in `towers_to`}."""
    for old, new in zip(towers_from.weights, towers_to.weights):
        values = new.numpy()
        for source, targets in pairs.items():
            for target in targets:
                values[target] = old.numpy()[source]
        new.assign(values)


def reduction(larger, smaller, edges):
    """Returns the predictions of a larger network whose towers are copies of a smaller one's, and those of the latter.

    Args:
      larger: Method whose towers are set.
      smaller: Method whose towers are copied.
      edges: {edge of the smaller: edges of the larger that get its tower}; others keep random weights.
    """
    networks = build(larger), build(smaller, seed=7)
    for i, network in enumerate(networks):
        shake(network, seed=i)
    networks[0].get_layer("hm3/embeddings").set_weights(networks[1].get_layer("hm3/embeddings").get_weights())
    large, small = larger.graph.edges, smaller.graph.edges
    pairs = {small.index(edge): [large.index(copy) for copy in copies] for edge, copies in edges.items()}
    copied(networks[1].get_layer("hm3/towers"), networks[0].get_layer("hm3/towers"), pairs)
    return [network(batch())["log_probs"] for network in networks]


def assert_equal(first, second, level):
    for space in ("impression", "click"):
        np.testing.assert_allclose(first[space][level], second[space][level], rtol=1e-5, atol=1e-6)


HM3_OF_ESM2 = {
    "click": ["click"],
    "d_ma_given_click": ["d_ma_given_d_mi", "d_ma_given_no_d_mi"],
    "purchase_given_d_ma": ["purchase_given_d_ma"],
    "purchase_given_no_d_ma": ["purchase_given_no_d_ma"],
}
ESM2_OF_ESMM = {"click": ["click"], "purchase_given_click": ["purchase_given_d_ma", "purchase_given_no_d_ma"]}


def test_hm3_with_equal_macro_towers_is_esm2_whatever_its_micro_tower():
    hm3, esm2 = reduction(methods.HM3, methods.ESM2, HM3_OF_ESM2)
    np.testing.assert_allclose(hm3["impression"]["click"], esm2["impression"]["click"], rtol=1e-5, atol=1e-6)
    assert_equal(hm3, esm2, "d_ma")
    assert_equal(hm3, esm2, "purchase")


def test_hm3_with_unequal_macro_towers_is_not_esm2():
    hm3, esm2 = reduction(methods.HM3, methods.ESM2, {**HM3_OF_ESM2, "d_ma_given_click": ["d_ma_given_d_mi"]})
    assert np.abs(hm3["impression"]["purchase"] - esm2["impression"]["purchase"]).max() > 0.01


@pytest.mark.parametrize("larger", [methods.ESM2, methods.HM3], ids=["esm2", "hm3"])
def test_equal_purchase_towers_are_esmm(larger):
    first, esmm = reduction(larger, methods.ESMM, ESM2_OF_ESMM)
    assert_equal(first, esmm, "purchase")


def test_the_chains_of_base_share_nothing():
    network = build(methods.BASE)
    inputs = batch()
    with tf.GradientTape(persistent=True) as tape:
        logits = network(inputs)["edge_logits"]
    click, purchase = (
        {i for i, g in enumerate(tape.gradient(logits[edge], network.trainable_variables)) if g is not None}
        for edge in ("click", "purchase_given_click")
    )
    assert not click & purchase
    assert click | purchase == set(range(len(network.trainable_variables)))
    assert len(click) == len(purchase)


def test_the_networks_of_base_start_from_different_weights():
    network = build(methods.BASE)
    for layer in ("embeddings", "towers"):
        first, second = (network.get_layer(f"hm3/{layer}{suffix}").get_weights() for suffix in ("", "_1"))
        assert np.abs(first[0] - second[0]).max() > 1e-3


def test_one_chain_has_one_embedding_layer_under_all_its_towers():
    network = build(methods.HM3)
    shapes = [tuple(w.shape) for w in network.get_layer("hm3/embeddings").weights]
    assert shapes == [(90, 4)], "one variable a width"
    assert [layer.name for layer in network.layers if "embeddings" in layer.name] == ["hm3/embeddings"]


@pytest.mark.parametrize("cross_layers", [0, 2])
def test_the_seed_fixes_the_weights(cross_layers):
    first, again, other = (build(seed=seed, cross_layers=cross_layers).get_weights() for seed in (0, 0, 1))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert any((a != c).any() for a, c in zip(first, other))


def test_cross_layers_are_those_of_dcn_v2():
    """x_(l+1) = x_0 * (W x_l + b) + x_l: Wang et al., WWW 2021, eq. 1."""
    network = build(cross_layers=2)
    shake(network)
    layers = [network.get_layer(name) for name in ("hm3/inputs", "hm3/cross_0", "hm3/cross_1")]
    start, *crossed = keras.Model(network.inputs, [layer.output for layer in layers])(batch())
    expected = start = start.numpy()
    for layer, found in zip(layers[1:], crossed):
        kernel, bias = layer.get_weights()
        expected = start * (expected @ kernel + bias) + expected
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_cross_layers_multiply_the_inputs_and_are_trained():
    network = build(cross_layers=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(batch())["log_probs"]["impression"]["purchase"])
    crosses = [v for layer in ("hm3/cross_0", "hm3/cross_1") for v in network.get_layer(layer).trainable_variables]
    assert len(crosses) == 4
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, crosses))


def test_bfloat16_leaves_weights_and_predictions_in_float32():
    network = build(precision="bfloat16")
    predictions = network(batch())
    assert {w.dtype for w in network.weights} == {tf.float32}
    assert {tensor.dtype for tensor in tf.nest.flatten(predictions)} == {tf.float32}
    exact = build()(batch())
    for coarse, fine in zip(tf.nest.flatten(predictions), tf.nest.flatten(exact)):
        np.testing.assert_allclose(coarse, fine, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kept", [FEATURES[:1], FEATURES[2:3], FEATURES[3:4]], ids=["id", "ids", "number"])
def test_a_network_may_have_a_single_feature(kept):
    (feature,) = kept
    logits = build(features=kept)({feature.name: batch()[feature.name]})["edge_logits"]
    assert logits["click"].shape == (64,)


def test_dropout_is_for_training_only():
    network = build(dropout=0.5)
    shake(network)
    served, again, trained = (
        network(batch(), training=training)["edge_logits"]["click"].numpy() for training in (False, None, True)
    )
    np.testing.assert_array_equal(served, again)
    assert (served != trained).any()
