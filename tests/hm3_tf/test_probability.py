"""The log-space recursion against the paper's equations, all outcome paths, and their exact gradients."""

import doctest
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.probability import given_gate, log_bernoulli, log_probs
from tests import reference

GRAPHS = [
    pytest.param(chain, root, id=f"{method}-{root}")
    for method, graphs in reference.PAPER_CHAINS.items()
    for root, chain in graphs
]
HM3 = reference.PAPER_CHAINS["hm3"][0][1]
HM3_R = reference.PAPER_CHAINS["hm3_r"][0][1]
ESM2 = reference.PAPER_CHAINS["esm2"][0][1]
ESMM = reference.PAPER_CHAINS["esmm"][0][1]
FROM_CLICK = [chain for method, ((_, chain), *_) in reference.PAPER_CHAINS.items() if method != "base"]
NO_GATE = (("a", False), ("b", False), ("c", False))
GATE_AFTER_NON_GATE = (("view", False), ("click", True), ("cart", False), ("apply", True), ("approve", False))
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}

properties = settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
chains = st.lists(st.booleans(), min_size=1, max_size=5).map(lambda gates: tuple(zip("abcde", gates)))


def build(chain, root="impression"):
    return BehaviorGraph(tuple(Behavior(name, gate) for name, gate in chain), root)


def normal_logits(graph, dtype="float32", batch=64, scale=3.0, seed=0):
    values = np.random.default_rng(seed).normal(0, scale, (len(graph.edges), batch)).astype(dtype)
    return dict(zip(graph.edges, values))


@st.composite
def chains_with_logits(draw, bound, dtype="float32", batch=3):
    chain = draw(chains)
    edges = build(chain).edges
    elements = st.floats(-bound, bound, width=int(dtype[-2:]), allow_subnormal=False)
    return chain, dict(zip(edges, draw(arrays(dtype, (len(edges), batch), elements=elements))))


def log_pairs(chain, logits, given=None, root="impression"):
    """Returns the result of log_probs as {level: array [batch, 2]}."""
    tensors = {edge: tf.constant(value) for edge, value in logits.items()}
    return {level: pair.numpy() for level, pair in log_probs(build(chain, root), tensors, given).items()}


def gradients_of(chain, logits, level, root="impression"):
    """Returns {edge: (d log P / d logit, d log(1 - P) / d logit)}, 0 where an edge does not matter."""
    tensors = {edge: tf.constant(value) for edge, value in logits.items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        pair = log_probs(build(chain, root), tensors)[level]
        p, q = pair[..., 0], pair[..., 1]
    d_p, d_q = (tape.gradient(y, tensors, unconnected_gradients="zero") for y in (p, q))
    return {edge: (d_p[edge].numpy(), d_q[edge].numpy()) for edge in logits}


def assert_close_in_log_space(pair, p, q, tolerance):
    """Asserts equality of the rarer outcome in units of its log, of the other in relative terms of its own."""
    rarer = np.log(np.minimum(p, q))
    bound = tolerance * np.maximum(1.0, -rarer)
    for actual, mine, other in ((pair[..., 0], p, q), (pair[..., 1], q, p)):
        exact = np.where(mine <= other, np.log(mine), np.log1p(-np.minimum(other, 0.5)))
        error = np.abs(actual.astype(np.float64) - exact)
        np.testing.assert_array_less(error, bound * np.where(mine <= other, 1.0, -2 * exact) + 1e-37)


def assert_close_gradients(actual, chain, logits, level, tolerance, root="impression"):
    """Asserts equality relative to the size that a gradient can have: 1 for log P, the odds for the other side."""
    p, q = reference.probabilities(chain, logits, root=root)[level]
    for edge, exact in reference.gradients(chain, logits, level, root).items():
        for got, wanted, odds in zip(actual[edge], exact, (q / p, p / q)):
            error = np.abs(got.astype(np.float64) - wanted)
            np.testing.assert_array_less(error, tolerance * np.minimum(1.0, odds) + 1e-37, err_msg=edge)


def paper_equations(chain, y):
    """Returns {level: P} of a chain by its paper's own formula; y(edge) is the probability of an edge."""
    names = [name for name, _ in chain]
    if len(names) == 1:
        (name,) = names
        return {name: y(name if name == "click" else f"{name}_given_click")}
    y1 = y("click")
    if len(names) == 2:  # ESMM: pCTCVR = pCTR * pCVR
        return {"click": y1, "purchase": y1 * y("purchase_given_click")}
    if len(names) == 3:  # ESM2: y1 (y2 y3 + (1 - y2) y4)
        action = names[1]
        y2, y3, y4 = y(f"{action}_given_click"), y(f"purchase_given_{action}"), y(f"purchase_given_no_{action}")
        return {"click": y1, action: y1 * y2, "purchase": y1 * (y2 * y3 + (1 - y2) * y4)}
    first, second = names[1:3]  # HM3, Eq. 1-4; HM3-R swaps micro and macro
    y2, y3, y5 = y(f"{first}_given_click"), y(f"{second}_given_{first}"), y(f"{second}_given_no_{first}")
    y4, y6 = y(f"purchase_given_{second}"), y(f"purchase_given_no_{second}")
    return {
        "click": y1,
        first: y1 * y2,
        second: y1 * (y2 * y3 + (1 - y2) * y5),
        "purchase": y1 * y4 * (y2 * y3 + (1 - y2) * y5) + y1 * y6 * (y2 * (1 - y3) + (1 - y2) * (1 - y5)),
    }


def central_differences(chain, logits, level, root="impression", step=1e-6):
    """Returns {edge: (d log P / d logit, d log(1 - P) / d logit)} in float64."""
    result = {}
    for edge in logits:
        moved = [{**logits, edge: logits[edge].astype(np.float64) + s} for s in (step, -step)]
        high, low = (np.log(reference.probabilities(chain, m, root=root)[level]) for m in moved)
        result[edge] = tuple((high - low) / (2 * step))
    return result


def test_the_oracles_agree_with_their_hand_worked_examples():
    assert doctest.testmod(reference).failed == 0
    assert doctest.testmod(reference).attempted > 8


def test_the_oracle_gradients_agree_with_finite_differences():
    logits = normal_logits(build(GATE_AFTER_NON_GATE), "float64", batch=8, scale=1.0)
    for level, _ in GATE_AFTER_NON_GATE:
        exact = reference.gradients(GATE_AFTER_NON_GATE, logits, level)
        for edge, numeric in central_differences(GATE_AFTER_NON_GATE, logits, level).items():
            np.testing.assert_allclose(exact[edge], numeric, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chain, root", GRAPHS)
def test_every_method_equals_the_closed_form_of_its_paper(chain, root, dtype):
    logits = normal_logits(build(chain, root), dtype)
    expected = paper_equations(chain, lambda edge: reference.sigmoid(logits[edge]))
    actual = log_pairs(chain, logits, root=root)
    assert list(actual) == list(expected) == [name for name, _ in chain]
    for level, p in expected.items():
        np.testing.assert_allclose(np.exp(actual[level].astype(np.float64)), np.stack([p, 1 - p], -1), atol=1e-6)
        np.testing.assert_allclose(actual[level][:, 0], np.log(p), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chain, root", GRAPHS)
def test_every_method_equals_the_sum_over_all_paths(chain, root, dtype):
    logits = normal_logits(build(chain, root), dtype, seed=1)
    actual = log_pairs(chain, logits, root=root)
    for level, (p, q) in reference.probabilities(chain, logits, root=root).items():
        assert actual[level].dtype == dtype
        np.testing.assert_allclose(np.exp(actual[level].astype(np.float64)), np.stack([p, q], -1), atol=1e-6)
        assert_close_in_log_space(actual[level], p, q, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@properties
@given(data=st.data())
def test_every_chain_equals_the_sum_over_all_paths(dtype, data):
    chain, logits = data.draw(chains_with_logits(10, dtype))
    actual = log_pairs(chain, logits)
    assert list(actual) == [name for name, _ in chain]
    for level, (p, q) in reference.probabilities(chain, logits).items():
        assert_close_in_log_space(actual[level], p, q, TOLERANCE[dtype])


@properties
@given(chains_with_logits(80))
def test_both_outcomes_are_log_probabilities_that_sum_to_one(case):
    chain, logits = case
    for pair in log_pairs(chain, logits).values():
        assert np.isfinite(pair).all() and (pair <= 0).all()
        np.testing.assert_allclose(np.exp(pair.astype(np.float64)).sum(-1), 1.0, rtol=0, atol=2e-7)


@properties
@given(chains_with_logits(80))
def test_gradients_are_finite_for_logits_up_to_80(case):
    chain, logits = case
    for level, _ in chain:
        for pair in gradients_of(chain, logits, level).values():
            assert np.isfinite(pair).all()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
@properties
@given(data=st.data())
def test_gradients_of_every_chain_equal_those_of_the_sum_over_all_paths(dtype, tolerance, data):
    chain, logits = data.draw(chains_with_logits(10, dtype))
    for level, _ in chain:
        assert_close_gradients(gradients_of(chain, logits, level), chain, logits, level, tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("chain, root", GRAPHS)
def test_gradients_of_every_method_equal_those_of_the_sum_over_all_paths(chain, root, dtype, tolerance):
    logits = normal_logits(build(chain, root), dtype, seed=2)
    for level, _ in chain:
        assert_close_gradients(gradients_of(chain, logits, level, root), chain, logits, level, tolerance, root)


@pytest.mark.parametrize("purchase_rate", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("chain", FROM_CLICK, ids=lambda chain: chain[-2][0] + str(len(chain)))
def test_gradients_do_not_vanish_for_rare_purchases(chain, purchase_rate):
    # click and purchase-after-click share the rarity: P(click) = P(purchase | ...) = sqrt(rate), the rest is at 1/2.
    rare = np.float32([np.log(np.sqrt(purchase_rate)) - np.log1p(-np.sqrt(purchase_rate))])
    logits = {e: rare if e == "click" or e.startswith("purchase") else np.zeros(1, "f") for e in build(chain).edges}
    p, q = reference.probabilities(chain, logits)["purchase"]
    np.testing.assert_allclose(p, purchase_rate, rtol=1e-5)
    actual = gradients_of(chain, logits, "purchase")
    assert_close_gradients(actual, chain, logits, "purchase", 3e-6)
    # By hand, for a gate: d log P / d logit = 1 - y1, and d log(1 - P) = -P / (1 - P) d log P.
    d_p = 1 - reference.sigmoid(logits["click"])
    np.testing.assert_allclose(actual["click"], [d_p, -p / q * d_p], rtol=3e-6)
    for edge in [edge for edge in logits if edge.startswith("purchase")]:
        np.testing.assert_allclose(actual[edge], reference.gradients(chain, logits, "purchase")[edge], rtol=3e-6)


def test_the_gradient_of_a_shared_logit_is_the_number_of_rare_levels_at_4e_11():
    # Three gates at logit -8: P = sigmoid(-8)^3 = 3.8e-11, d log P / d logit = 3 (1 - sigmoid(-8)) = 2.999; the
    # clipped form log(max(P, 1e-7)) has gradient 0 there.
    chain = (("click", True), ("apply", True), ("approve", False))
    logits = {edge: np.float32([-8]) for edge in build(chain).edges}
    actual = gradients_of(chain, logits, "approve")
    assert sum(float(d_p[0]) for d_p, _ in actual.values()) == pytest.approx(3 * (1 - reference.sigmoid(-8)), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chain, root", [*GRAPHS, pytest.param(NO_GATE, "impression", id="no gate")])
def test_gradients_are_right_where_all_logits_are_zero(chain, root, dtype):
    logits = {edge: np.zeros(2, dtype) for edge in build(chain, root).edges}
    for level, _ in chain:
        actual = gradients_of(chain, logits, level, root)
        for edge, expected in central_differences(chain, logits, level, root).items():
            np.testing.assert_allclose(actual[edge], expected, rtol=0, atol=1e-6, err_msg=f"{level}: {edge}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_right_where_a_probability_is_one_half_by_balance(dtype):
    # P(b) = (sigmoid(x) + sigmoid(-x)) / 2 = 1/2 whatever x is, rounded either way.
    chain, x = (("a", False), ("b", False)), np.linspace(-4, 4, 401).astype(dtype)
    logits = {"a": np.zeros_like(x), "b_given_a": x, "b_given_no_a": -x}
    assert_close_gradients(gradients_of(chain, logits, "b"), chain, logits, "b", 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_are_right_where_they_are_one_half(dtype):
    pair = log_pairs((("a", False),), {"a": np.zeros(1, dtype)})["a"]
    np.testing.assert_allclose(pair, np.log([[0.5, 0.5]]), rtol=10 * np.finfo(dtype).eps)


@properties
@given(chains_with_logits(10), st.data())
def test_a_level_in_the_middle_conditions_the_levels_after_it(case, data):
    chain, logits = case
    level = data.draw(st.sampled_from([name for name, _ in chain]))
    expected = reference.probabilities(chain, logits, given=level)
    actual = log_pairs(chain, logits, given=level)
    assert list(actual) == list(expected)
    for later, (p, q) in expected.items():
        assert_close_in_log_space(actual[later], p, q, TOLERANCE["float32"])


def test_a_gate_after_a_level_without_one_stops_what_follows():
    # P(click) = .5 .8 + .5 .4 = .6; P(cart) = .6 .5 = .3; P(apply) = .6 (.5 .9 + .5 .1) = .3; P(approve) = .3 .2 = .06
    y = {"view": 0.5, "click_given_view": 0.8, "click_given_no_view": 0.4, "cart_given_click": 0.5}
    y |= {"apply_given_cart": 0.9, "apply_given_no_cart": 0.1, "approve_given_apply": 0.2}
    actual = log_pairs(GATE_AFTER_NON_GATE, {edge: np.log([p / (1 - p)]) for edge, p in y.items()})
    expected = {"view": 0.5, "click": 0.6, "cart": 0.3, "apply": 0.3, "approve": 0.06}
    assert {level: float(np.exp(pair[0, 0])) for level, pair in actual.items()} == pytest.approx(expected, rel=1e-6)


def test_an_event_that_needs_a_gate_is_the_product_of_both():
    gate, conditional = np.float32([-8, 0, 3]), np.float32([-9, 0, 4])
    p = reference.sigmoid(gate) * reference.sigmoid(conditional)
    q = reference.sigmoid(-gate) + reference.sigmoid(gate) * reference.sigmoid(-conditional)
    pair = given_gate(log_bernoulli(tf.constant(gate)), log_bernoulli(tf.constant(conditional)))
    np.testing.assert_allclose(pair, np.log(np.where(p < q, [p, 1 - p], [1 - q, q])).T, rtol=2e-6)


@pytest.mark.parametrize("chain", FROM_CLICK, ids=lambda chain: chain[-2][0] + str(len(chain)))
def test_pcvr_times_pctr_is_pctcvr(chain):
    logits = normal_logits(build(chain))
    pcvr = log_pairs(chain, logits, given="click")["purchase"][:, 0]
    entire_space = log_pairs(chain, logits)
    product = entire_space["click"][:, 0] + pcvr
    np.testing.assert_allclose(product, entire_space["purchase"][:, 0], rtol=2e-6, atol=2e-6)


def test_pcvr_does_not_need_the_click_tower():
    logits = {edge: np.zeros(1, "f") for edge in build(HM3).edges if edge != "click"}
    assert list(log_pairs(HM3, logits, given="click")) == ["d_mi", "d_ma", "purchase"]


@pytest.mark.parametrize("chain, root", GRAPHS)
def test_the_root_and_none_are_the_same_condition(chain, root):
    logits = normal_logits(build(chain, root))
    by_default, by_name = log_pairs(chain, logits, root=root), log_pairs(chain, logits, given=root, root=root)
    assert list(by_default) == list(by_name)
    for level, pair in by_default.items():
        np.testing.assert_array_equal(pair, by_name[level])


def test_nothing_comes_after_the_last_level():
    assert log_pairs(HM3, normal_logits(build(HM3)), given="purchase") == {}


def test_hm3_with_equal_d_ma_towers_is_esm2():
    hm3 = normal_logits(build(HM3))
    hm3["d_ma_given_no_d_mi"] = hm3["d_ma_given_d_mi"]
    esm2 = {edge: hm3[edge] for edge in ("click", "purchase_given_d_ma", "purchase_given_no_d_ma")}
    esm2["d_ma_given_click"] = hm3["d_ma_given_d_mi"]
    actual = log_pairs(HM3, hm3)
    for level, pair in log_pairs(ESM2, esm2).items():
        np.testing.assert_allclose(actual[level], pair, rtol=2e-6)


def test_esm2_with_equal_purchase_towers_is_esmm():
    esm2 = normal_logits(build(ESM2))
    esm2["purchase_given_no_d_ma"] = esm2["purchase_given_d_ma"]
    actual = log_pairs(ESM2, esm2)
    for level, pair in log_pairs(
        ESMM, {"click": esm2["click"], "purchase_given_click": esm2["purchase_given_d_ma"]}
    ).items():
        np.testing.assert_allclose(actual[level], pair, rtol=2e-6)


def test_hm3_with_unequal_d_ma_towers_is_not_esm2():
    hm3 = {edge: np.zeros(1, "f") for edge in build(HM3).edges} | {"d_ma_given_no_d_mi": np.float32([3])}
    esm2 = {edge: np.zeros(1, "f") for edge in build(ESM2).edges}
    assert abs(log_pairs(HM3, hm3)["d_ma"] - log_pairs(ESM2, esm2)["d_ma"]).max() > 0.1


def test_a_missing_logit_is_named_with_the_closest_one():
    logits = normal_logits(build(HM3))
    logits["d_ma_given_nod_mi"] = logits.pop("d_ma_given_no_d_mi")
    message = "expected a logit for edge 'd_ma_given_no_d_mi', got none; did you mean 'd_ma_given_nod_mi'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        log_pairs(HM3, logits)


def test_no_logits_at_all_is_an_error():
    with pytest.raises(ValueError, match="expected a logit for edge 'click', got none; known: none"):
        log_pairs(HM3, {})


def test_an_unknown_condition_is_named_with_the_closest_level():
    message = "expected a level of the graph, got 'clik'; did you mean 'click'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        log_pairs(HM3, normal_logits(build(HM3)), given="clik")


def test_the_impression_is_no_condition_of_a_graph_that_starts_at_click():
    chain = (("purchase", False),)
    with pytest.raises(ValueError, match="expected a level of the graph, got 'impression'; known: purchase"):
        log_pairs(chain, {"purchase_given_click": np.zeros(1)}, given="impression", root="click")


def test_a_traced_function_of_unknown_batch_size_equals_eager_execution():
    graph, logits = build(HM3), normal_logits(build(HM3))
    signature = [{edge: tf.TensorSpec([None], tf.float32) for edge in graph.edges}]
    traced = tf.function(lambda tensors: log_probs(graph, tensors), input_signature=signature)
    eager = log_pairs(HM3, logits)
    for level, pair in traced({edge: tf.constant(value) for edge, value in logits.items()}).items():
        np.testing.assert_allclose(pair, eager[level], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_log_bernoulli_pair_is_exact_far_out(dtype):
    logits = np.array([-80, -10, -1, 0, 1, 10, 80], dtype)
    expected = -np.logaddexp(0.0, np.stack([-logits, logits], -1).astype(np.float64))
    actual = log_bernoulli(tf.constant(logits))
    assert actual.shape == (7, 2) and actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=5 * np.finfo(dtype).eps)
