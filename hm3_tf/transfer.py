"""AITM: towers that hand what they learned to the tower of the next level (Xi et al., KDD 2021).

Each tower predicts P(level) over impressions by itself, and a calibrator asks that no level is likelier than the one before. So
every level but the last has to be a gate. The probability of a level given the one before it follows from them: the smaller of
P(level) / P(level before) and 1.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from hm3_tf.behavior_graph import BehaviorGraph
from hm3_tf.config import TrainingConfig
from hm3_tf.errors import ConfigError
from hm3_tf.layers import EachTower, ParallelTowers
from hm3_tf.losses import LossTerm, cross_entropy
from hm3_tf.methods import Method
from hm3_tf.network import Blueprint, Design
from hm3_tf.probability import log_bernoulli

_LEAST = 1e-6  # of 1 - P(level | level before), so that its log-odds are finite


class TransferTowers(keras.layers.Layer):
    """Towers in a row; each but the first attends to its own state and to what the one before hands on (AIT module).

    Args:
      graph: Their chain.
      base_rates: {level: rate in (0, 1)} at which its logit starts.
      units: Widths of the ReLU layers, at least one.
      dropout: Share of the units of each ReLU layer that is dropped in training.
      seed: Seeds the kernels.
      **kwargs: Of `keras.layers.Layer`.

    Raises:
      ConfigError: There are no ReLU layers, whose states are what is handed on.
    """

    def __init__(
        self,
        graph: BehaviorGraph,
        base_rates: Mapping[str, float],
        units: Sequence[int],
        dropout: float,
        seed: int,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not units:
            raise ConfigError("model.tower_units: expected at least one width for towers that hand on states, got none")
        self._graph = graph
        self._towers = ParallelTowers(base_rates, units, dropout, seed, name="towers", dtype=kwargs.get("dtype"))
        self._levels, self._width = len(base_rates), units[-1]
        self._seeds = itertools.count(seed + (len(units) + 1) * len(base_rates))

    def build(self, input_shape) -> None:
        """Creates the towers, the kernels of the attention [width, width] and those of the transfer [levels - 1, ...]."""
        self._towers.build(input_shape)
        square = (self._width, self._width)
        self._query, self._key, self._value = (
            self.add_weight(name, square, initializer=keras.initializers.GlorotUniform(next(self._seeds)))
            for name in ("query", "key", "value")
        )
        handed = EachTower(next(self._seeds))
        self._transfer = self.add_weight("transfer", (self._levels - 1, *square), initializer=handed)
        self._bias = self.add_weight("transfer_bias", (self._levels - 1, self._width), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Runs the towers.

        Args:
          inputs: float [batch, width].
          training: Whether dropout is on.

        Returns:
          {level: float32 logit [batch] of the level over impressions; edge: that of a level given the one before it}.
        """
        first, *own = self._towers.hidden_states(tf.cast(inputs, self.compute_dtype), training)
        states = [first]
        for state, kernel, bias in zip(own, tf.unstack(self._transfer), tf.unstack(self._bias)):
            handed = tf.nn.relu(tf.nn.bias_add(tf.matmul(states[-1], kernel), bias))
            states.append(self._attend(tf.stack([state, handed], axis=1)))
        levels = self._towers.logits(states)
        pairs = zip(self._graph.edges[1:], itertools.pairwise(self._graph.levels))
        given = {edge: conditional_logit(levels[level], levels[before]) for edge, (before, level) in pairs}
        return {**levels, **given}

    def _attend(self, pair: tf.Tensor) -> tf.Tensor:
        """Returns the mean of the values of two states [batch, 2, width], weighted by their self-attention: [batch, width]."""
        query, key, value = (pair @ kernel for kernel in (self._query, self._key, self._value))
        scores = tf.reduce_sum(query * key, axis=-1) / math.sqrt(self._width)
        return tf.einsum("bs,bsw->bw", tf.nn.softmax(scores), value)


def conditional_logit(level: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """Returns the log-odds of a level given the one before it.

    Args:
      level: float32 [batch], log-odds of the level over impressions.
      before: float32 [batch], likewise of the level before.

    Returns:
      float32 [batch], log-odds of min(P(level) / P(level before), 1 - 1e-6).
    """
    log_p = tf.minimum(tf.math.log_sigmoid(level) - tf.math.log_sigmoid(before), math.log1p(-_LEAST))
    return log_p - tf.math.log(-tf.math.expm1(log_p))


def transfer_towers(blueprint: Blueprint) -> dict[str, tf.Tensor]:
    """Returns the logits of the graph's edges, and of each level but the first over impressions under the level's name.

    Args:
      blueprint: What they are built from; its method has one chain of gates.

    Returns:
      {edge or level: float32 [batch]}.
    """
    graph = blueprint.method.graph
    rates = itertools.accumulate((blueprint.rates[edge] for edge in graph.edges), lambda before, rate: before * rate)
    units, dropout = blueprint.config.tower_units, blueprint.config.dropout
    towers = blueprint.layer(TransferTowers, graph, dict(zip(graph.levels, rates)), units, dropout, name="towers")
    return towers(blueprint.trunk())


def transfer_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the losses of AITM beside that of the first level.

    Every later level has the cross-entropy of its own tower's P(level) in place of that of the chain, and `calibrator` is the
    sum of max(P(level) - P(level before), 0).

    Args:
      method: The method.
      training: Not read.

    Returns:
      {level or "calibrator": loss}.
    """

    def of_level(level: str) -> LossTerm:
        return lambda labels, predictions: cross_entropy(
            labels[level], log_bernoulli(predictions["edge_logits"][level])
        )

    def calibrator(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        levels = [tf.sigmoid(predictions["edge_logits"][level]) for level in method.levels]
        return tf.add_n([tf.nn.relu(after - before) for before, after in itertools.pairwise(levels)])

    return {**{level: of_level(level) for level in method.levels[1:]}, "calibrator": calibrator}


TRANSFER = Design(transfer_towers, transfer_terms)
