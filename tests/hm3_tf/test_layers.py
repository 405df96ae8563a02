"""The layers against NumPy written by hand."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from hm3_tf import methods
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError
from hm3_tf.features import HashedFeature, NumericFeature, embedding_tables
from hm3_tf.layers import HashedEmbeddings, NumericInputs, ParallelTowers, ProbabilityGraph
from tests import reference

RATES = {"click": 0.1, "d_ma_given_click": 0.05, "purchase_given_d_ma": 0.2}
NAN = float("nan")


def hashed(name, table=None, buckets=10, dim=2, length=None, combiner="mean"):
    table = table or name
    return HashedFeature(name, "int64", buckets, table, table, dim, length, combiner)


def random_ids(features, batch=5, seed=0):
    generator = np.random.default_rng(seed)
    shapes = {f.name: (batch,) if f.length is None else (batch, f.length) for f in features}
    return {f.name: generator.integers(0, f.buckets, shapes[f.name]).astype(np.int32) for f in features}


def tables_of(layer, features):
    """Returns {table: its rows} cut out of the layer's fused variables."""
    fused = dict(zip(dict.fromkeys(t.dim for t in embedding_tables(features)), layer.get_weights()))
    tables, start = {}, dict.fromkeys(fused, 0)
    for table in embedding_tables(features):
        tables[table.name] = fused[table.dim][start[table.dim] : start[table.dim] + table.rows]
        start[table.dim] += table.rows
    return tables


def looked_up(feature, table, ids):
    """Returns [batch, dim]: the embedding of each row by plain indexing, pooled over the values that are there."""
    if feature.length is None:
        return table[ids]
    result = np.zeros((len(ids), feature.dim), np.float32)
    for row, values in enumerate(ids):
        present = [table[value] for value in values if value != 0]
        if present:
            result[row] = np.sum(present, axis=0) / (len(present) if feature.combiner == "mean" else 1)
    return result


def embed(features, ids):
    """Returns the layer's output and the expected one: widths in order of first use, in each single values first."""
    layer = HashedEmbeddings(features, seed=1)
    output = layer({name: tf.constant(value) for name, value in ids.items()}).numpy()
    tables = tables_of(layer, features)
    widths = list(dict.fromkeys(f.dim for f in features))
    order = sorted(features, key=lambda f: (widths.index(f.dim), f.length is not None))
    return output, np.concatenate([looked_up(f, tables[f.table], ids[f.name]) for f in order], axis=-1)


@pytest.mark.parametrize(
    "features",
    [
        pytest.param([hashed("a")], id="one column"),
        pytest.param([hashed("a"), hashed("b", buckets=7)], id="two tables of one width"),
        pytest.param([hashed("a", dim=3), hashed("b"), hashed("c", dim=3), hashed("d")], id="widths that alternate"),
        pytest.param([hashed("a", "shared"), hashed("b"), hashed("c", "shared")], id="a shared table"),
        pytest.param([hashed("a", length=4)], id="several values, mean"),
        pytest.param([hashed("a", length=4, combiner="sum")], id="several values, sum"),
        pytest.param([hashed("a", length=1), hashed("b", length=3, combiner="sum")], id="only several values"),
        pytest.param(
            [
                hashed("seen", "item", length=5),
                hashed("item", "item"),
                hashed("tags", dim=3, length=2, combiner="sum"),
                hashed("user", dim=3, buckets=30),
                hashed("city"),
            ],
            id="all of it",
        ),
    ],
)
def test_embeddings_are_rows_of_their_own_table(features):
    output, expected = embed(features, random_ids(features))
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-7)
    assert output.dtype == np.float32


@pytest.mark.parametrize("combiner", ["mean", "sum"])
def test_missing_values_of_a_sequence_do_not_count_and_a_row_without_values_is_zero(combiner):
    features = [hashed("seen", length=3, combiner=combiner)]
    ids = {"seen": np.array([[4, 0, 7], [0, 0, 0], [5, 5, 0], [0, 9, 0]], np.int32)}
    output, expected = embed(features, ids)
    np.testing.assert_allclose(output, expected, rtol=1e-6)
    np.testing.assert_array_equal(output[1], [0, 0])
    np.testing.assert_array_equal(output[3], expected[3])


def test_a_missing_single_value_has_a_row_of_its_own():
    features = [hashed("brand")]
    output, expected = embed(features, {"brand": np.array([0, 3], np.int32)})
    np.testing.assert_array_equal(output, expected)
    assert np.abs(output[0]).min() > 0


def test_columns_of_a_shared_table_embed_a_value_alike_and_move_it_together():
    features = [hashed("item", "items"), hashed("last", "items")]
    layer = HashedEmbeddings(features, seed=0)
    ids = {"item": tf.constant([3, 4]), "last": tf.constant([4, 3])}
    with tf.GradientTape() as tape:
        output = layer(ids)
    np.testing.assert_array_equal(output[:, :2], output[::-1, 2:])
    gradient = tf.convert_to_tensor(tape.gradient(output, layer.trainable_variables[0]))
    np.testing.assert_array_equal(gradient[:, 0], [0, 0, 0, 2, 2, 0, 0, 0, 0, 0])


def test_the_tables_of_one_width_are_one_variable():
    features = [hashed("a", buckets=10), hashed("b", dim=5, buckets=20), hashed("c", buckets=30), hashed("d", "a")]
    layer = HashedEmbeddings(features, seed=0)
    layer({name: tf.constant(value) for name, value in random_ids(features).items()})
    assert [tuple(v.shape) for v in layer.trainable_variables] == [(40, 2), (20, 5)]


def test_the_gradient_of_a_table_is_sparse():
    features = [hashed("a"), hashed("seen", "a", length=3)]
    layer = HashedEmbeddings(features, seed=0)
    with tf.GradientTape() as tape:
        output = layer({name: tf.constant(value) for name, value in random_ids(features).items()})
    assert isinstance(tape.gradient(output, layer.trainable_variables[0]), tf.IndexedSlices)


def test_tables_start_anew_with_numbers_that_seed_and_draw_fix():
    features = [hashed("a"), hashed("b", dim=3)]
    layer, same = HashedEmbeddings(features, seed=5), HashedEmbeddings(features, seed=5)
    for each in (layer, same):
        each({name: tf.constant(value) for name, value in random_ids(features).items()})
    first = layer.get_weights()
    layer.set_weights([np.ones_like(w) for w in first])
    draws = []
    for draw in (0, 1, 2, 1):
        layer.reset(draw)
        draws.append(layer.get_weights())
    same.reset(1)
    for i, start in enumerate(first):
        np.testing.assert_array_equal(draws[0][i], start)
        np.testing.assert_array_equal(draws[1][i], draws[3][i])
        np.testing.assert_array_equal(draws[1][i], same.get_weights()[i])
        assert (draws[1][i] != draws[0][i]).all() and (draws[1][i] != draws[2][i]).all()


def test_tables_beyond_what_an_int32_numbers_are_refused():
    features = [hashed("a", buckets=2**30), hashed("b", buckets=2**30), hashed("c", dim=3, buckets=2**30)]
    with pytest.raises(ConfigError, match=r"tables of width 2 have 2,147,483,648 rows.*lower model.hash_buckets"):
        HashedEmbeddings(features, seed=0)


def test_numbers_are_fed_as_the_tanh_of_their_standard_score():
    features = [NumericFeature("price", (10.0,), (4.0,)), NumericFeature("seen", (1.0, -2.0), (0.5, 3.0), 2)]
    inputs = {"price": [10.0, 14.0, -2.0], "seen": [[1.0, 1.0], [1.5, -2.0], [0.0, -5.0]]}
    output = NumericInputs(features)({name: tf.constant(value) for name, value in inputs.items()})
    expected = np.tanh([[0, 0, 1], [1, 1, 0], [-3, -2, -1]])
    np.testing.assert_allclose(output, expected, rtol=1e-6)


def test_a_missing_number_is_fed_as_the_mean():
    features = [NumericFeature("price", (10.0,), (4.0,)), NumericFeature("seen", (1.0, -2.0), (0.5, 3.0), 2)]
    inputs = {"price": tf.constant([NAN, 14.0]), "seen": tf.constant([[1.5, NAN], [NAN, NAN]])}
    expected = np.tanh([[0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(NumericInputs(features)(inputs), expected, rtol=1e-6)


def test_a_constant_column_is_fed_as_zero_whatever_comes():
    features = [NumericFeature("age", (3.0, 3.0), (0.0, 1.0), 2)]
    inputs = {"age": tf.constant([[3.0, 3.0], [1e30, 3.0], [NAN, NAN]])}
    np.testing.assert_array_equal(NumericInputs(features)(inputs), np.zeros((3, 2)))


def towers(units=(6, 5), dropout=0.0, rates=None, seed=3, **kwargs):
    return ParallelTowers(RATES if rates is None else rates, units, dropout, seed, **kwargs)


def shake(layer, seed=0):
    """Gives every weight, biases too, a random value."""
    generator = np.random.default_rng(seed)
    layer.set_weights([generator.normal(size=w.shape).astype(np.float32) for w in layer.get_weights()])


def multi_layer_perceptron(weights, tower, inputs):
    """Returns the logits [batch] of one tower, layer by layer."""
    state, pairs = inputs, list(zip(weights[::2], weights[1::2]))
    for i, (kernel, bias) in enumerate(pairs):
        state = state @ kernel[tower] + bias[tower]
        state = state if i == len(pairs) - 1 else np.maximum(state, 0)
    return state[:, 0]


@pytest.mark.parametrize("units", [(), (7,), (6, 5), (8, 4, 2)])
def test_every_tower_is_a_multi_layer_perceptron_of_its_own(units):
    layer, inputs = towers(units), np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    layer(inputs)
    shake(layer)
    logits = layer(inputs)
    assert list(logits) == list(RATES)
    weights = sorted(layer.weights, key=lambda w: (w.name.split("_")[-1], "bias" in w.name))
    for tower, edge in enumerate(RATES):
        expected = multi_layer_perceptron([w.numpy() for w in weights], tower, inputs)
        np.testing.assert_allclose(logits[edge], expected, rtol=1e-5, atol=1e-5)


def test_every_tower_is_initialized_by_itself_with_its_own_fans():
    layer = towers((128, 64), rates=dict.fromkeys("abcdef", 0.5))
    layer(np.zeros((1, 256), np.float32))
    kernels = [w.numpy() for w in layer.weights if "kernel" in w.name]
    for kernel in kernels[:2]:
        _, fan_in, fan_out = kernel.shape
        for tower in kernel:
            # Uniform in +-sqrt(6 / (in + out)) has the variance 2 / (in + out); fans of the whole stack give a sixth.
            assert tower.var() == pytest.approx(2 / (fan_in + fan_out), rel=0.05)
            assert np.abs(tower).max() <= np.sqrt(6 / (fan_in + fan_out))
    assert [kernel.shape for kernel in kernels] == [(6, 256, 128), (6, 128, 64), (6, 64, 1)]


def test_no_two_towers_start_alike():
    layer = towers((64, 32), rates=dict.fromkeys("abcdef", 0.5))
    layer(np.zeros((1, 64), np.float32))
    for kernel in (w.numpy() for w in layer.weights if "kernel" in w.name):
        flat = kernel.reshape(len(kernel), -1)
        correlations = np.corrcoef(flat) - np.eye(len(flat))
        assert np.abs(correlations).max() < 5 / np.sqrt(flat.shape[1])


def test_the_seed_fixes_the_towers():
    first, again, other = (towers(seed=seed) for seed in (3, 3, 4))
    for layer in (first, again, other):
        layer(np.zeros((1, 4), np.float32))
    for kernel, same, another in zip(first.get_weights(), again.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(kernel, same)
        assert (kernel != another).any() or kernel.ndim < 3, "only biases may agree"


def test_the_last_bias_starts_at_the_log_odds_of_the_base_rate():
    layer = towers()
    logits = layer(np.zeros((2, 4), np.float32))
    for edge, rate in RATES.items():
        np.testing.assert_allclose(logits[edge], np.log(rate / (1 - rate)) * np.ones(2), rtol=1e-6)


def test_units_are_dropped_in_training_only():
    layer, inputs = towers((400,), dropout=0.5), np.ones((3, 4), np.float32)
    layer(inputs)
    layer.set_weights([np.ones_like(w) for w in layer.get_weights()])
    served, trained = (layer(inputs, training=training)["click"].numpy() for training in (False, True))
    np.testing.assert_array_equal(served, [2001, 2001, 2001])  # 400 units of 4 + 1, and the bias
    np.testing.assert_array_equal(layer(inputs)["click"], served)
    # A unit that stays counts twice: 10 * Binomial(400, 1/2) + 1 has the mean 2001 and the deviation 100.
    assert (trained != served).any() and np.abs(trained - 2001).max() < 600
    assert set(np.unique((trained - 1) % 10)) == {0}


def test_without_dropout_training_changes_nothing():
    layer, inputs = towers(), np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    served, trained = (layer(inputs, training=training) for training in (False, True))
    for edge in RATES:
        np.testing.assert_array_equal(served[edge], trained[edge])


def test_bfloat16_is_for_the_products_only():
    inputs = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    exact, coarse = towers((32, 8)), towers((32, 8), dtype="mixed_bfloat16")
    exact(inputs), coarse(inputs)
    shake(exact)
    coarse.set_weights(exact.get_weights())
    assert {w.dtype for w in coarse.weights} == {tf.float32}
    for edge, logit in coarse(inputs).items():
        expected = exact(inputs)[edge].numpy()
        assert logit.dtype == tf.float32
        difference = np.abs(logit - expected).max() / np.abs(expected).max()
        assert 1e-5 < difference < 0.03, "a bfloat16 has eight bits"


def test_the_base_rate_is_not_rounded_to_bfloat16():
    logits = towers(rates={"purchase": 0.0011}, dtype="mixed_bfloat16")(np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(logits["purchase"], [np.log(0.0011 / 0.9989)], rtol=1e-6)


def compose(graphs, batch=50):
    edges = [edge for graph in graphs for edge in graph.edges]
    values = np.random.default_rng(0).normal(0, 2, (len(edges), batch)).astype(np.float32)
    logits = dict(zip(edges, values))
    return ProbabilityGraph(graphs)({edge: tf.constant(v) for edge, v in logits.items()}), logits


def assert_pair(pair, p, not_p):
    np.testing.assert_allclose(np.exp(pair[..., 0]), p, rtol=1e-5)
    np.testing.assert_allclose(np.exp(pair[..., 1]), not_p, rtol=1e-5)


@pytest.mark.parametrize("method", ["esmm", "esm2", "esm2_mi", "hm3", "hm3_r"])
def test_one_chain_is_composed_over_impressions_and_over_clicks(method):
    result, logits = compose(methods.METHODS[method].graphs)
    chain = reference.PAPER_CHAINS[method][0][1]
    assert list(result) == ["impression", "click"]
    for space, given in (("impression", None), ("click", "click")):
        expected = reference.probabilities(chain, logits, given)
        assert list(result[space]) == list(expected)
        for level, (p, not_p) in expected.items():
            assert_pair(result[space][level], p, not_p)


def test_two_chains_are_composed_as_a_product_over_impressions():
    result, logits = compose(methods.BASE.graphs)
    pctr, pcvr = (reference.sigmoid(logits[edge]) for edge in ("click", "purchase_given_click"))
    assert {space: list(levels) for space, levels in result.items()} == {
        "impression": ["click", "purchase"],
        "click": ["purchase"],
    }
    assert_pair(result["impression"]["click"], pctr, 1 - pctr)
    assert_pair(result["click"]["purchase"], pcvr, 1 - pcvr)
    assert_pair(result["impression"]["purchase"], pctr * pcvr, 1 - pctr * pcvr)


def test_three_chains_are_composed_through_every_root():
    graphs = (
        BehaviorGraph((Behavior("click"),)),
        BehaviorGraph((Behavior("look"), Behavior("apply")), root="click"),
        BehaviorGraph((Behavior("approve"),), root="apply"),
    )
    result, logits = compose(graphs)
    p = {edge: reference.sigmoid(logit) for edge, logit in logits.items()}
    look, approve = p["look_given_click"], p["approve_given_apply"]
    apply_ = look * p["apply_given_look"] + (1 - look) * p["apply_given_no_look"]
    assert {space: list(levels) for space, levels in result.items()} == {
        "impression": ["click", "look", "apply", "approve"],
        "click": ["look", "apply", "approve"],
        "apply": ["approve"],
    }
    assert_pair(result["apply"]["approve"], approve, 1 - approve)
    assert_pair(result["click"]["approve"], apply_ * approve, 1 - apply_ * approve)
    assert_pair(result["impression"]["look"], p["click"] * look, 1 - p["click"] * look)
    total = p["click"] * apply_ * approve
    assert_pair(result["impression"]["approve"], total, 1 - total)


def test_layers_hold_under_a_functional_model_with_an_unknown_batch():
    features = [hashed("a"), hashed("seen", "a", length=3)]
    inputs = {"a": keras.Input((), dtype=tf.int32), "seen": keras.Input((3,), dtype=tf.int32)}
    outputs = towers()(HashedEmbeddings(features, seed=0)(inputs))
    assert outputs["click"].shape == (None,)
