"""AUX: more labels without a behavior graph, the control that tells the two apart.

ESMM with a head for each other level of the log: the labels, embeddings and entire-space losses of HM3, but no head's output
enters another's probability. What HM3 gains over ESMM and AUX gains too comes from the labels; the rest comes from the graph.
"""

from collections.abc import Mapping

import tensorflow as tf

from hm3_tf.behavior_graph import BehaviorGraph
from hm3_tf.config import TrainingConfig
from hm3_tf.losses import LossTerm, cross_entropy
from hm3_tf.methods import Method
from hm3_tf.network import Blueprint, Design, chain_towers
from hm3_tf.probability import log_bernoulli, log_probs


def towers_with_heads(blueprint: Blueprint) -> dict[str, tf.Tensor]:
    """Returns the towers of the chain, and one for each auxiliary level given the click."""
    edges = [head.edges[-1] for head in blueprint.method.heads]
    return chain_towers(blueprint, {edge: blueprint.rates[edge] for edge in edges})


def head_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the cross-entropy over impressions of each auxiliary level.

    With an `edge_loss_weight` each has that of its head on clicked rows too, as the towers of a chain have.

    Args:
      method: The method.
      training: Has the weight.

    Returns:
      {auxiliary level: loss}.
    """

    def of_head(head: BehaviorGraph) -> LossTerm:
        click, level = head.levels

        def loss(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
            logits = predictions["edge_logits"]
            of_impressions = cross_entropy(labels[level], log_probs(head, logits)[level])
            of_clicks = labels[click] * cross_entropy(labels[level], log_bernoulli(logits[head.edges[-1]]))
            return of_impressions + training.edge_loss_weight * of_clicks

        return loss

    return {head.levels[-1]: of_head(head) for head in method.heads}


AUXILIARY_HEADS = Design(towers_with_heads, head_terms)
