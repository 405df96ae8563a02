"""AUX against arithmetic by hand."""

import numpy as np
import tensorflow as tf

from data_pipeline.simulate import SimulatedLog
from hm3_tf import methods
from hm3_tf.auxiliary import head_terms
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.model import build_model
from hm3_tf.probability import log_probs
from tests.reference import sigmoid

CLICK = np.array([0.0, 0.0, 1.0, 1.0])
D_MI = np.array([0.0, 0.0, 0.0, 1.0])
LOGITS = {
    "click": [-1.0, 0.5, 1.0, -4.0],
    "purchase_given_click": [9.0, 9.0, 9.0, 9.0],
    "d_mi_given_click": [0.3, -2.0, -1.0, -0.5],
    "d_ma_given_click": [0.2, -1.0, 0.7, -0.3],
}


def losses(**training):
    labels = {"click": CLICK, "d_mi": D_MI, "d_ma": CLICK - D_MI}
    tensors = [{k: tf.constant(v, tf.float32) for k, v in columns.items()} for columns in (labels, LOGITS)]
    terms = head_terms(methods.AUX, TrainingConfig(**training))
    return {name: term(tensors[0], {"edge_logits": tensors[1]}).numpy() for name, term in terms.items()}


def test_a_head_has_the_cross_entropy_of_its_level_over_impressions():
    p = sigmoid(LOGITS["click"]) * sigmoid(LOGITS["d_mi_given_click"])
    assert set(losses()) == {"d_mi", "d_ma"}
    np.testing.assert_allclose(losses()["d_mi"], -np.where(D_MI > 0, np.log(p), np.log1p(-p)), rtol=1e-5)


def test_an_edge_loss_weight_adds_that_of_the_head_on_clicked_rows():
    p = sigmoid(LOGITS["d_ma_given_click"])
    of_clicks = CLICK * -np.where(CLICK - D_MI > 0, np.log(p), np.log1p(-p))
    added = losses(edge_loss_weight=2.0)["d_ma"] - losses()["d_ma"]
    np.testing.assert_allclose(added, 2 * of_clicks, rtol=1e-4, atol=1e-6)


def test_heads_are_chains_from_the_click():
    assert [head.levels for head in methods.AUX.heads] == [("click", "d_mi"), ("click", "d_ma")]
    assert methods.AUX.losses == ("click", "purchase", "d_mi", "d_ma")


def test_aux_is_esmm_with_two_more_towers_that_do_not_enter_its_probabilities():
    schema = SimulatedLog().schema
    networks = [
        build_model(Config(ModelConfig(name, tower_units=(4,), embedding_dim=2, features=("price",))), schema).network
        for name in ("esmm", "aux")
    ]
    inputs = {"price": tf.constant([10.0, 50.0, 90.0])}
    esmm, aux = (network(inputs) for network in networks)
    assert set(aux["edge_logits"]) - set(esmm["edge_logits"]) == {"d_mi_given_click", "d_ma_given_click"}
    edges = {edge: aux["edge_logits"][edge] for edge in esmm["edge_logits"]}
    expected = log_probs(methods.ESMM.graphs[0], edges)
    for level in ("click", "purchase"):
        np.testing.assert_allclose(aux["log_probs"]["impression"][level], expected[level], rtol=1e-5)
