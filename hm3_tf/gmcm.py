"""GMCM (Bao et al., SIGIR 2020): a re-implementation from the abstract, which is all of the paper that could be read.

Micro behaviors are the nodes of a graph whose edges weigh how often they happen together; a conversion given a click is
classified from that graph by graph convolution, with the micro behaviors as further tasks and inverse propensity weighting.
Widths, layers, normalization, readout and the floor of the propensity are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import TrainingConfig
from hm3_tf.layers import EachTower, drop
from hm3_tf.losses import LossTerm, cross_entropy
from hm3_tf.methods import Method
from hm3_tf.network import Blueprint, Design
from hm3_tf.probability import log_bernoulli

_NODE_WIDTH = 64
_CONVOLUTIONS = 2
_HEAD_LAYERS = 2  # the last widths of `tower_units`, after the readout; those before are of the shared layers
_FLOOR_QUANTILE = 0.05  # of the propensities of a batch, below which none counts as smaller
_BIN, _BINS = 0.05, 400  # width in log-propensity and number of the bins in which they are counted, down to e^-20


def adjacency(counts: np.ndarray) -> np.ndarray:
    """Returns the normalized adjacency of the graph of micro behaviors.

    A_ij = N_ij / N_i, the share of the rows with i that also have j, without its diagonal and made symmetric by the mean of
    A_ij and A_ji; then D^-1/2 (A + I) D^-1/2 with the degrees D of A + I (Kipf and Welling, ICLR 2017, Eq. 2).

    Args:
      counts: int [n, n], rows of the training split on which both happened; N_i is its diagonal.

    Returns:
      float32 [n, n], symmetric, >= 0; the identity where nothing happened.
    """
    share = counts / np.maximum(np.diag(counts), 1)[:, np.newaxis]
    np.fill_diagonal(share, 0)
    linked = (share + share.T) / 2 + np.eye(len(counts))
    scale = 1 / np.sqrt(linked.sum(axis=1))
    return (scale[:, np.newaxis] * linked * scale).astype(np.float32)


class SharedLayers(keras.layers.Layer):
    """ReLU layers that several tasks read.

    Args:
      units: Their widths.
      dropout: Share of the units of each that is dropped in training.
      seed: Seeds the kernels and the dropout.
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, units: Sequence[int], dropout: float, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self._dropout = dropout
        self._generator = tf.random.Generator.from_seed(seed)  # part of a checkpoint, unlike that of Keras' Dropout
        glorot = keras.initializers.GlorotUniform
        self._hidden = [
            keras.layers.Dense(
                width, "relu", kernel_initializer=glorot(seed + i), name=f"dense_{i}", dtype=kwargs.get("dtype")
            )
            for i, width in enumerate(units)
        ]

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the last layer [batch, last of `units`] of inputs [batch, width], or the inputs where there is none."""
        state = inputs
        for layer in self._hidden:
            state = drop(layer(state), self._dropout, self._generator) if training else layer(state)
        return state


class MicroGraph(keras.layers.Layer):
    """Graph convolution over micro behaviors (Kipf and Welling, ICLR 2017, Eq. 2), read out by its mean.

    Args:
      base_rates: {behavior: rate in (0, 1)} at which its logit starts.
      adjacency: float32 [n, n], see `adjacency`; it does not change.
      seed: Seeds the kernels.
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, base_rates: Mapping[str, float], adjacency: np.ndarray, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self._base_rates = dict(base_rates)
        self._adjacency = adjacency
        self._seed = seed

    def build(self, input_shape) -> None:
        """Creates the kernel [n, in, 64] and bias of the nodes, those of their logits, and a kernel [64, 64] a convolution."""
        nodes, width = len(self._base_rates), _NODE_WIDTH
        glorot = keras.initializers.GlorotUniform
        self._kernel = self.add_weight(
            "node_kernel", (nodes, int(input_shape[-1]), width), initializer=EachTower(self._seed)
        )
        self._bias = self.add_weight("node_bias", (nodes, width), initializer="zeros")
        self._logit_kernel = self.add_weight(
            "logit_kernel", (nodes, width, 1), initializer=EachTower(self._seed + nodes)
        )
        rates = np.array(list(self._base_rates.values()))
        start = keras.initializers.Constant(np.log(rates / (1 - rates)))
        self._start = self.add_weight("logit_bias", (nodes,), initializer=start, experimental_autocast=False)
        self._convolutions = [
            self.add_weight(f"convolution_{i}", (width, width), initializer=glorot(self._seed + 2 * nodes + i))
            for i in range(_CONVOLUTIONS)
        ]
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Classifies a batch.

        Args:
          inputs: float [batch, width].

        Returns:
          (float [batch, 64], the mean over the nodes after the convolutions; {behavior: float32 logit [batch]}, each of its own
          node before them).
        """
        # Nodes come first, so that each convolution is two plain products: einsum takes three times as long.
        nodes = tf.nn.relu(tf.matmul(tf.expand_dims(inputs, 0), self._kernel) + self._bias[:, tf.newaxis])
        logits = tf.cast(tf.matmul(nodes, self._logit_kernel)[..., 0], tf.float32) + self._start[:, tf.newaxis]
        links = tf.cast(self._adjacency, nodes.dtype)
        for kernel in self._convolutions:
            met = tf.matmul(links, tf.reshape(nodes, (len(self._base_rates), -1)))
            nodes = tf.nn.relu(tf.reshape(tf.matmul(tf.reshape(met, (-1, _NODE_WIDTH)), kernel), tf.shape(nodes)))
        return tf.reduce_mean(nodes, axis=0), dict(zip(self._base_rates, tf.unstack(logits)))


def micro_graph_towers(blueprint: Blueprint) -> dict[str, tf.Tensor]:
    """Returns the logits of the click, of the conversion given a click, and of each micro behavior given a click.

    Args:
      blueprint: What they are built from; its method is click and conversion, and splits one level.

    Returns:
      {edge or behavior: float32 [batch]}.
    """
    click, conversion = blueprint.method.graph.edges
    (level,) = blueprint.method.split_levels
    units, trunk = blueprint.config.tower_units, blueprint.trunk()
    shared = blueprint.layer(SharedLayers, units[:-_HEAD_LAYERS], blueprint.config.dropout, name="shared")(trunk)
    behaviors = blueprint.co_occurrences[level]
    readout, micro = blueprint.layer(MicroGraph, behaviors.rates(), adjacency(behaviors.counts), name="micro_graph")(
        shared
    )
    joined = blueprint.concatenate([readout, shared], "readout")
    return {
        **blueprint.towers({click: blueprint.rates[click]}, trunk, name="click_tower"),
        **blueprint.towers({conversion: blueprint.rates[conversion]}, joined, units[-_HEAD_LAYERS:], name="head"),
        **micro,
    }


def floored_propensity(log_p: tf.Tensor) -> tf.Tensor:
    """Returns the propensities of a batch, those below its 5 % quantile raised to it.

    The quantile is that of the global batch, from counts that add up over the replicas: so replicas with a part of the batch
    each have the loss of one with the whole. Counts have bins of 5 % of a propensity, and the floor is the lower edge of one.

    Args:
      log_p: float32 [rows], natural logarithm of the propensities of this replica.

    Returns:
      float32 [rows], without a gradient; at most 5 % of the global batch are raised.
    """
    log_p = tf.stop_gradient(log_p)
    bins = tf.cast(tf.clip_by_value(-log_p / _BIN, 0, _BINS - 1), tf.int32)
    counts = tf.math.unsorted_segment_sum(tf.ones_like(log_p), bins, _BINS)
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync > 1:
        counts = context.all_reduce(tf.distribute.ReduceOp.SUM, counts)
    as_rare = tf.cumsum(counts, reverse=True)  # rows in a bin or below it in propensity
    kept = tf.reduce_sum(tf.cast(as_rare > _FLOOR_QUANTILE * as_rare[0], tf.float32))
    return tf.exp(tf.maximum(log_p, -_BIN * kept))


def micro_graph_terms(method: Method, training: TrainingConfig) -> dict[str, LossTerm]:
    """Returns the losses of GMCM beside that of the click.

    Args:
      method: The method.
      training: Not read.

    Returns:
      {conversion level: o CE(conversion, pcvr) / propensity, in place of the chain's; "micro": mean over the behaviors of
      o CE(behavior)}, with the click o.
    """
    click, conversion = method.levels
    (level,) = method.split_levels

    def inverse_propensity(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        propensity = floored_propensity(predictions["log_probs"][IMPRESSION][click][:, 0])
        return (
            labels[click] * cross_entropy(labels[conversion], predictions["log_probs"][click][conversion]) / propensity
        )

    def micro(labels: Mapping[str, tf.Tensor], predictions: Mapping[str, Mapping]) -> tf.Tensor:
        logits = {n: logit for n, logit in predictions["edge_logits"].items() if n.startswith(f"{level}.")}
        losses = [cross_entropy(labels[name], log_bernoulli(logit)) for name, logit in logits.items()]
        return labels[click] * tf.add_n(losses) / len(losses)

    return {conversion: inverse_propensity, "micro": micro}


MICRO_GRAPH = Design(micro_graph_towers, micro_graph_terms)
