"""Losses that correct for conversions being seen on clicked rows only: ESCM2-IPW, ESCM2-DR and DCMT.

Each is a term beside the entire-space losses of a chain, whose first level, the click, has the propensity: the probability that
a row's conversion label is observed. No gradient goes through a propensity. Every term is a mean over impressions.
"""

import math
from collections.abc import Mapping

import tensorflow as tf

from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import TrainingConfig
from hm3_tf.losses import LossTerm, cross_entropy
from hm3_tf.methods import Method
from hm3_tf.network import Blueprint, Design, chain_towers
from hm3_tf.probability import log_bernoulli

_IMPUTATION, _COUNTERFACTUAL = "imputation", "counterfactual"


def inverse_propensities(log_pair: tf.Tensor, largest: float) -> tf.Tensor:
    """Returns 1 / P and 1 / (1 - P), clipped and without a gradient.

    Args:
      log_pair: float32 [batch, 2], natural-log (P, 1 - P).
      largest: Most that either may be; PaddleRec's ESCM2 clips at 15.

    Returns:
      float32 [batch, 2], in [1, largest].
    """
    return tf.stop_gradient(tf.exp(tf.minimum(-log_pair, math.log(largest))))


class ObservedConversions:
    """What all losses here read: the click o, the conversion r given the click, and the propensity.

    Args:
      method: The method; its first level is the click, its last the conversion.
      clip: Largest inverse propensity.
    """

    def __init__(self, method: Method, clip: float) -> None:
        self._click, self._conversion = method.levels[0], method.levels[-1]
        self._clip = clip

    def observed(self, labels: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns o: float32 [batch], 0 or 1."""
        return labels[self._click]

    def log_pair(self, predictions: Mapping[str, Mapping]) -> tf.Tensor:
        """Returns natural-log (P, 1 - P) of the conversion given a click: float32 [batch, 2]."""
        return predictions["log_probs"][self._click][self._conversion]

    def error(self, labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        """Returns e, the cross-entropy of the conversion given a click: float32 [batch], of use where o is 1."""
        return cross_entropy(labels[self._conversion], self.log_pair(predictions))

    def inverse(self, predictions: Mapping[str, Mapping]) -> tf.Tensor:
        """Returns (1 / P, 1 / (1 - P)) of the click, see `inverse_propensities`: float32 [batch, 2]."""
        return inverse_propensities(predictions["log_probs"][IMPRESSION][self._click], self._clip)


def inverse_propensity_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the loss of ESCM2-IPW, `cvr`: o e / p (Wang et al., SIGIR 2022, Section 3.2).

    Args:
      method: The method.
      training: Has the clip.

    Returns:
      {"cvr": loss}.
    """
    rows = ObservedConversions(method, training.propensity_clip)

    def cvr(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        return rows.observed(labels) * rows.error(labels, predictions) * rows.inverse(predictions)[:, 0]

    return {"cvr": cvr}


def imputed_error(predictions: Mapping[str, Mapping]) -> tf.Tensor:
    """Returns the cross-entropy that the imputation tower expects: float32 [batch], > 0 (softplus of its logit: ours)."""
    return tf.math.softplus(predictions["edge_logits"][_IMPUTATION])


def doubly_robust_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the losses of ESCM2-DR (Wang et al., SIGIR 2022, Section 3.3).

    `cvr` is e' + o (e - e') / p with the imputed error e', and `imputation` is o (e - e')^2 / p. Both train both towers, as in
    PaddleRec.

    Args:
      method: The method.
      training: Has the clip.

    Returns:
      {"cvr": loss, "imputation": loss}.
    """
    rows = ObservedConversions(method, training.propensity_clip)

    def weighted(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping], power: int) -> tf.Tensor:
        difference = rows.error(labels, predictions) - imputed_error(predictions)
        return rows.observed(labels) * difference**power * rows.inverse(predictions)[:, 0]

    def cvr(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        return imputed_error(predictions) + weighted(labels, predictions, 1)

    def imputation(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        return weighted(labels, predictions, 2)

    return {"cvr": cvr, _IMPUTATION: imputation}


def counterfactual_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the losses of DCMT (Zhu et al., ICDE 2023) beside those of its click and of its conversion over impressions.

    The counterfactual tower r* predicts 1 - r. `cvr` is o CE(r) / p + (1 - o) CE(1 - r, r*) / (1 - p), `counterfactual` is
    |r + r* - 1| of the predictions.

    Args:
      method: The method.
      training: Has the clip.

    Returns:
      {"cvr": loss, "counterfactual": loss}.
    """
    rows = ObservedConversions(method, training.propensity_clip)
    conversion = method.levels[-1]

    def cvr(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        inverse, observed = rows.inverse(predictions), rows.observed(labels)
        opposite = cross_entropy(1 - labels[conversion], log_bernoulli(predictions["edge_logits"][_COUNTERFACTUAL]))
        factual = observed * rows.error(labels, predictions) * inverse[:, 0]
        return factual + (1 - observed) * opposite * inverse[:, 1]

    def counterfactual(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        opposite = tf.sigmoid(predictions["edge_logits"][_COUNTERFACTUAL])
        return tf.abs(tf.exp(rows.log_pair(predictions)[:, 0]) + opposite - 1)

    return {"cvr": cvr, _COUNTERFACTUAL: counterfactual}


def _conversion_rate(blueprint: Blueprint) -> float:
    """Returns the rate of the last edge: of a conversion given a click, where the graph is click and conversion."""
    return blueprint.rates[blueprint.method.graphs[-1].edges[-1]]


def towers_with_imputation(blueprint: Blueprint) -> dict[str, tf.Tensor]:
    """Returns the towers of the chain and `imputation`, which starts at the cross-entropy of the conversion's rate."""
    rate = _conversion_rate(blueprint)
    error = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    return chain_towers(blueprint, {_IMPUTATION: -math.expm1(-error)})


def towers_with_counterfactual(blueprint: Blueprint) -> dict[str, tf.Tensor]:
    """Returns the towers of the chain and `counterfactual`, which starts at 1 less the conversion's rate."""
    return chain_towers(blueprint, {_COUNTERFACTUAL: 1 - _conversion_rate(blueprint)})


INVERSE_PROPENSITY = Design(chain_towers, inverse_propensity_terms)
DOUBLY_ROBUST = Design(towers_with_imputation, doubly_robust_terms)
COUNTERFACTUAL = Design(towers_with_counterfactual, counterfactual_terms)
