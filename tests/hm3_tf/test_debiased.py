"""ESCM2 and DCMT against arithmetic by hand, and where their gradients stop."""

import math

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.config import TrainingConfig
from hm3_tf.debiased import inverse_propensities
from hm3_tf.designs import get_design
from hm3_tf.errors import ConfigError
from hm3_tf.layers import ProbabilityGraph
from hm3_tf.losses import CompositeLoss, cross_entropy
from hm3_tf.methods import METHODS
from tests.reference import sigmoid

# Four impressions: two unclicked, a click without and a click with a purchase. The last is the least likely click.
LABELS = {"click": [0.0, 0.0, 1.0, 1.0], "purchase": [0.0, 0.0, 0.0, 1.0]}
LOGITS = {
    "click": [-1.0, 0.5, 1.0, -4.0],
    "purchase_given_click": [0.3, -2.0, -1.0, -0.5],
    "imputation": [0.2, -1.0, 0.7, -0.3],
    "counterfactual": [1.0, 2.0, 0.4, -0.6],
}
CLICKED, BOUGHT = (np.array(LABELS[level]) for level in ("click", "purchase"))
P, CVR, OPPOSITE = (sigmoid(LOGITS[tower]) for tower in ("click", "purchase_given_click", "counterfactual"))
ERROR = -np.where(BOUGHT > 0, np.log(CVR), np.log1p(-CVR))
IMPUTED = np.log1p(np.exp(LOGITS["imputation"]))
CLIP = 15.0  # below 1 / P = 55.6 of the last row


def tensors(columns):
    return {name: tf.constant(values, tf.float32) for name, values in columns.items()}


def terms(name, clip=CLIP):
    method = METHODS[name]
    return get_design(method.design).loss_terms(method, TrainingConfig(propensity_clip=clip))


def predictions(name, logits):
    return {"log_probs": ProbabilityGraph(METHODS[name].graphs)(logits), "edge_logits": logits}


def losses(name, **options):
    logits = tensors(LOGITS)
    return {n: term(tensors(LABELS), predictions(name, logits)) for n, term in terms(name, **options).items()}


def gradients(name, loss):
    """Returns {tower: gradient of the summed loss [rows]}; zeros where none goes."""
    logits = tensors(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(terms(name)[loss](tensors(LABELS), predictions(name, logits)))
    return {k: g.numpy() for k, g in tape.gradient(total, logits, unconnected_gradients="zero").items()}


def test_an_inverse_propensity_is_one_over_it_up_to_the_clip():
    p = np.array([0.5, 0.01, 0.99])
    pairs = tf.constant(np.log(np.stack([p, 1 - p], -1)), tf.float32)
    np.testing.assert_allclose(inverse_propensities(pairs, 15.0), [[2, 2], [15, 1 / 0.99], [1 / 0.99, 15]], rtol=1e-5)


def test_the_inverse_of_the_rarest_click_is_the_clip_and_finite():
    np.testing.assert_allclose(inverse_propensities(tf.constant([[-200.0, -1e-30]]), 15.0), [[15, 1]], rtol=1e-6)


def test_ipw_is_the_error_of_clicked_rows_over_their_propensity():
    # Row 2: ln(1 + e^-1) / sigmoid(1) = 0.3133 * 1.3679; row 3: ln(1 + e^0.5) * 15, as 1 / sigmoid(-4) = 55.6 is clipped.
    np.testing.assert_allclose(losses("escm2_ipw")["cvr"], [0, 0, 0.42852, 14.61115], rtol=1e-4)
    np.testing.assert_allclose(losses("escm2_ipw", clip=1e6)["cvr"], CLICKED * ERROR / P, rtol=1e-5)


def test_ipw_where_every_propensity_counts_as_one_is_the_plain_loss_of_clicked_rows():
    np.testing.assert_allclose(losses("escm2_ipw", clip=1.0)["cvr"], CLICKED * ERROR, rtol=1e-6)


def test_ipw_is_right_on_average_over_clicks_where_clicked_rows_alone_are_not():
    """Of each kind of row a share P is clicked: IPW then has the mean error over all rows."""
    p, error = np.array([0.8, 0.2]), np.array([0.1, 0.9])
    inverse = inverse_propensities(tf.constant(np.log(np.stack([p, 1 - p], -1)), tf.float32), 15.0)[:, 0]
    assert (p * error * inverse).numpy().mean() == pytest.approx(error.mean(), rel=1e-5)
    assert (p * error).sum() / p.sum() == pytest.approx(0.26)


@pytest.mark.parametrize(
    "name, loss", [("escm2_ipw", "cvr"), ("escm2_dr", "cvr"), ("escm2_dr", "imputation"), ("dcmt", "cvr")]
)
def test_no_gradient_goes_into_the_propensity(name, loss):
    found = gradients(name, loss)
    np.testing.assert_array_equal(found["click"], 0)
    assert np.abs(found["purchase_given_click"]).max() > 0


def test_ipw_moves_the_conversion_of_clicked_rows_only():
    expected = CLICKED * (CVR - BOUGHT) * np.minimum(1 / P, CLIP)
    np.testing.assert_allclose(gradients("escm2_ipw", "cvr")["purchase_given_click"], expected, rtol=1e-5)


def test_dr_is_the_imputed_error_corrected_on_clicked_rows():
    inverse = np.minimum(1 / P, CLIP)
    np.testing.assert_allclose(losses("escm2_dr")["cvr"], IMPUTED + CLICKED * (ERROR - IMPUTED) * inverse, rtol=1e-5)
    np.testing.assert_allclose(losses("escm2_dr")["imputation"], CLICKED * (ERROR - IMPUTED) ** 2 * inverse, rtol=1e-5)


def test_dr_with_an_exact_imputation_is_the_error_itself_whatever_the_propensity():
    logits = tensors({**LOGITS, "imputation": np.log(np.expm1(ERROR))})
    result = terms("escm2_dr")["cvr"](tensors(LABELS), predictions("escm2_dr", logits))
    np.testing.assert_allclose(result, ERROR, rtol=1e-5)


def test_dr_trains_the_imputation_tower_by_both_of_its_losses():
    for loss in ("cvr", "imputation"):
        assert np.abs(gradients("escm2_dr", loss)["imputation"][2:]).min() > 0
    np.testing.assert_array_equal(gradients("escm2_dr", "imputation")["imputation"][:2], 0)


def test_dcmt_has_the_factual_error_of_clicked_and_the_counterfactual_one_of_unclicked_rows():
    opposite = -np.where(BOUGHT > 0, np.log1p(-OPPOSITE), np.log(OPPOSITE))
    expected = CLICKED * ERROR * np.minimum(1 / P, CLIP) + (1 - CLICKED) * opposite / (1 - P)
    np.testing.assert_allclose(losses("dcmt")["cvr"], expected, rtol=1e-5)
    # Row 0: ln(1 + e^-1) / (1 - sigmoid(-1)) = 0.3133 * 1.3679.
    assert losses("dcmt")["cvr"][0].numpy() == pytest.approx(0.42852, rel=1e-4)


def test_dcmt_asks_that_the_two_conversions_add_up_to_one():
    np.testing.assert_allclose(losses("dcmt")["counterfactual"], np.abs(CVR + OPPOSITE - 1), rtol=1e-5)
    logits = tensors({**LOGITS, "counterfactual": [-x for x in LOGITS["purchase_given_click"]]})
    result = terms("dcmt")["counterfactual"](tensors(LABELS), predictions("dcmt", logits))
    np.testing.assert_allclose(result, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["escm2_ipw", "escm2_dr", "dcmt"])
def test_the_loss_is_that_of_its_levels_and_terms_each_with_the_weight_of_the_method(name):
    method, logits = METHODS[name], tensors(LOGITS)
    loss = CompositeLoss(method.graphs, method.loss_weights, terms=terms(name))(
        tensors(LABELS), predictions(name, logits)
    )
    click, ctcvr = (
        -np.where(CLICKED > 0, np.log(P), np.log1p(-P)),
        -np.where(BOUGHT > 0, np.log(P * CVR), np.log1p(-P * CVR)),
    )
    more = {n: row.numpy() for n, row in losses(name).items()}
    expected = {
        "escm2_ipw": lambda: click + 0.5 * more["cvr"] + 0.5 * ctcvr,
        "escm2_dr": lambda: click + 0.5 * (more["cvr"] + more["imputation"]) + 0.5 * ctcvr,
        "dcmt": lambda: click + more["cvr"] + 1e-3 * more["counterfactual"] + ctcvr,
    }
    assert float(loss) == pytest.approx(expected[name]().mean(), rel=1e-5)


def test_hm3_with_ipw_weighs_the_conversion_of_the_whole_chain():
    method = METHODS["hm3_ipw"]
    generator = np.random.default_rng(0)
    logits = tensors({edge: generator.normal(0, 1, 4) for edge in method.graph.edges})
    pair = predictions("hm3_ipw", logits)["log_probs"]["click"]["purchase"]
    result = terms("hm3_ipw")["cvr"](tensors(LABELS), predictions("hm3_ipw", logits))
    inverse = np.minimum(1 / sigmoid(logits["click"].numpy()), CLIP)
    np.testing.assert_allclose(result, CLICKED * cross_entropy(tf.constant(BOUGHT), pair).numpy() * inverse, rtol=1e-5)


def test_a_term_named_as_a_level_takes_its_place():
    method, logits = METHODS["esmm"], tensors(LOGITS)
    task = CompositeLoss(method.graphs, {}, terms={"purchase": lambda labels, predicted: labels["click"] * 7.0})
    rows = task.row_losses(tensors(LABELS), predictions("esmm", logits))
    assert task.names == tuple(rows) == ("click", "purchase")
    np.testing.assert_array_equal(rows["purchase"], 7 * CLICKED)


def test_an_unknown_design_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="got 'transfr'; did you mean 'transfer'"):
        get_design("transfr")


def test_the_clip_is_a_number_of_the_config():
    assert math.isclose(TrainingConfig().propensity_clip, 15)
