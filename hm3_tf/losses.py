"""The training objective: cross-entropies of all levels over their whole sample space."""

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from data_pipeline.labels import edge_rows
from hm3_tf.behavior_graph import IMPRESSION, BehaviorGraph
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.probability import log_bernoulli

LossTerm = Callable[[Mapping[str, tf.Tensor], Mapping[str, Mapping]], tf.Tensor]
"""(labels {level: float32 [batch]}, predictions of the network) to a loss a row: float32 [batch], as a level's loss is."""


def cross_entropy(labels: tf.Tensor, log_pair: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy of each row.

    Args:
      labels: float32 [batch], 0 or 1.
      log_pair: float32 [batch, 2], natural-log (P, 1 - P).

    Returns:
      float32 [batch], >= 0, in nats.
    """
    log_p, log_not_p = tf.unstack(log_pair, axis=-1)
    return -tf.where(labels > 0, log_p, log_not_p)


class CompositeLoss(keras.layers.Layer, tfrs.tasks.Task):
    """Weighted sum of the cross-entropies of a method's levels (HM3, Section 2.3), and of the terms of its design.

    Each level's loss is a mean over all impressions of the batch; rows outside a chain's sample space (for BASE's
    purchase network the unclicked ones) count as zero. So every row has the same weight in every batch, and replicas that
    each see a part of the batch add up to the whole.

    Args:
      graphs: The method's chains.
      loss_weights: {level or term: weight}; one without has weight 1.
      edge_loss_weight: Weight of the full-path likelihood, the sum over the edges of each tower's cross-entropy on the
        rows that reach its edge. It identifies the towers, which the levels' losses do not; 0 is the paper.
      terms: {name: further loss}; one that is named as a level takes the place of its cross-entropy.

    Attributes:
      levels: Names of the levels, in order.
      names: Names of all losses: the levels, then the further terms.

    Raises:
      ConfigError: A weight is negative or names no loss.
    """

    def __init__(
        self,
        graphs: Sequence[BehaviorGraph],
        loss_weights: Mapping[str, float],
        edge_loss_weight: float = 0.0,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__()
        self._graphs = tuple(graphs)
        self._terms = dict(terms or {})
        self.levels = tuple(level for graph in graphs for level in graph.levels)
        self.names = tuple(dict.fromkeys((*self.levels, *self._terms)))
        for level in loss_weights:
            if level not in self.names:
                raise ConfigError(
                    f"training.loss_weights: expected a level, got {level!r}; {did_you_mean(level, self.names)}"
                )
        weights = {f"loss_weights.{level}": weight for level, weight in loss_weights.items()}
        for name, weight in {**weights, "edge_loss_weight": edge_loss_weight}.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise ConfigError(f"training.{name}: expected a weight of at least 0, got {weight}")
        self._weights = {level: float(loss_weights.get(level, 1.0)) for level in self.names}
        self._edge_weight = float(edge_loss_weight)

    def level_losses(
        self, labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping[str, Mapping[str, tf.Tensor]]]
    ) -> dict[str, tf.Tensor]:
        """Returns the unweighted loss of every level on each row.

        Args:
          labels: {level: float32 [batch]}, 0 or 1, zero after a gate that did not happen.
          predictions: Of the network: `log_probs` {sample space: {level: float32 [batch, 2]}}.

        Returns:
          {level: float32 [batch]}, zero on rows outside the level's sample space.
        """
        result = {}
        for graph in self._graphs:
            for level in graph.levels:
                loss = cross_entropy(labels[level], predictions["log_probs"][graph.root][level])
                result[level] = loss if graph.root == IMPRESSION else loss * labels[graph.root]
        return result

    def row_losses(self, labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> dict[str, tf.Tensor]:
        """Returns the unweighted losses of each row, in the order of `names`.

        Args:
          labels: As in `level_losses`, and those that the terms read.
          predictions: Of the network: `log_probs` and `edge_logits`.

        Returns:
          {loss: float32 [batch]}.
        """
        terms = {name: term(labels, predictions) for name, term in self._terms.items()}
        return self.level_losses(labels, predictions) | terms

    def _edge_loss(self, labels: Mapping[str, tf.Tensor], logits: Mapping[str, tf.Tensor]) -> tf.Tensor:
        happened = {level: label > 0 for level, label in labels.items()}
        total = 0.0
        for graph in self._graphs:
            for edge, (reached, taken) in edge_rows(graph, happened).items():
                loss = cross_entropy(tf.cast(taken, tf.float32), log_bernoulli(logits[edge]))
                total += tf.cast(reached, tf.float32) * loss
        return total

    def call(
        self,
        labels: Mapping[str, tf.Tensor],
        predictions: Mapping[str, Mapping],
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the loss of a batch.

        Args:
          labels: {level: float32 [batch]}.
          predictions: Of the network: `log_probs` as in `level_losses`, `edge_logits` {edge: float32 [batch]}.
          sample_weight: float32 [batch] or None.

        Returns:
          float32 scalar, nats an impression.
        """
        losses = self.row_losses(labels, predictions)
        total = tf.add_n([self._weights[name] * loss for name, loss in losses.items()])
        if self._edge_weight:
            total += self._edge_weight * self._edge_loss(labels, predictions["edge_logits"])
        return tf.reduce_mean(total if sample_weight is None else total * sample_weight)
