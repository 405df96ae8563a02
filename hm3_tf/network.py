"""The network: features to the log-probabilities of a method's levels, as a functional Keras model."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from data_pipeline.statistics import CoOccurrences
from hm3_tf.calibration import Calibration, KeptNegatives, kept_rate
from hm3_tf.config import ModelConfig, TrainingConfig
from hm3_tf.features import Feature, HashedFeature, NumericFeature
from hm3_tf.layers import HashedEmbeddings, NumericInputs, ParallelTowers, ProbabilityGraph
from hm3_tf.losses import LossTerm
from hm3_tf.methods import Method

_OURS = "hm3/"  # begins the names of all layers but the inputs, which have those of their columns
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def network_inputs(features: Sequence[Feature]) -> dict[str, keras.Input]:
    """Returns a symbolic input for each feature: int32 table rows or float32, [batch] or [batch, length]."""
    return {
        feature.name: keras.Input(
            shape=() if feature.length is None else (feature.length,),
            dtype=tf.int32 if isinstance(feature, HashedFeature) else tf.float32,
            name=feature.name,
        )
        for feature in features
    }


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """What the towers of a method are laid out from.

    Attributes:
      method: The method.
      inputs: {feature: symbolic input}, see `network_inputs`.
      features: The features.
      rates: {edge: rate in (0, 1)} at which its tower starts.
      co_occurrences: {level that the method splits: how often its behaviors happen together in the training split}.
      config: Widths and dropout.
      precision: `float32`, or `bfloat16` for the towers' matrix products.
      seed: Seeds the weights.
    """

    method: Method
    inputs: Mapping[str, tf.Tensor]
    features: Sequence[Feature]
    rates: Mapping[str, float]
    co_occurrences: Mapping[str, CoOccurrences]
    config: ModelConfig
    precision: str
    seed: int

    def trunk(self, name: str = "") -> tf.Tensor:
        """Returns new embeddings and numeric inputs for towers to read: float32 [batch, width]; `name` ends their names."""
        return _trunk(self.inputs, self.features, self.config, name, self.seed)

    def layer(self, kind: Callable[..., keras.layers.Layer], *args, name: str, **kwargs) -> keras.layers.Layer:
        """Returns a layer with a seed of its own and the precision of the towers.

        Args:
          kind: Its class, which takes `seed`, `name` and `dtype` beside what follows.
          *args: Of the class.
          name: Ends its name.
          **kwargs: Of the class.
        """
        seed = _layer_seed(self.seed, name)
        return kind(*args, seed=seed, name=f"{_OURS}{name}", dtype=_POLICIES[self.precision], **kwargs)

    def concatenate(self, parts: Sequence[tf.Tensor], name: str) -> tf.Tensor:
        """Returns parts [batch, width] beside each other: [batch, sum of widths]; `name` ends the layer's name."""
        return keras.layers.Concatenate(name=f"{_OURS}{name}", dtype=_POLICIES[self.precision])(parts)

    def towers(
        self, rates: Mapping[str, float], inputs: tf.Tensor, units: Sequence[int] | None = None, name: str = "towers"
    ) -> dict[str, tf.Tensor]:
        """Returns the logits of new towers.

        Args:
          rates: {tower: rate in (0, 1) at which it starts}.
          inputs: float32 [batch, width].
          units: Widths of their ReLU layers; default those of the config.
          name: Ends the layer's name.

        Returns:
          {tower: float32 [batch]}.
        """
        units = self.config.tower_units if units is None else units
        return self.layer(ParallelTowers, rates, units, self.config.dropout, name=name)(inputs)


def chain_towers(blueprint: Blueprint, extra: Mapping[str, float] | None = None) -> dict[str, tf.Tensor]:
    """Returns the logits of a tower for each edge.

    The chains of a method share nothing: one that has a single chain (all but BASE) has one embedding layer under all its
    towers.

    Args:
      blueprint: What they are built from.
      extra: {tower that is no edge: rate in (0, 1) at which it starts}; they stand beside those of the last chain.

    Returns:
      {edge or extra tower: float32 [batch]}.
    """
    logits: dict[str, tf.Tensor] = {}
    for i, graph in enumerate(blueprint.method.graphs):
        name = f"_{i}" if i else ""
        rates = {edge: blueprint.rates[edge] for edge in graph.edges}
        if i == len(blueprint.method.graphs) - 1:
            rates |= extra or {}
        logits |= blueprint.towers(rates, blueprint.trunk(name), name=f"towers{name}")
    return logits


@dataclasses.dataclass(frozen=True)
class Design:
    """What a method has beyond its behavior graph. The probabilities of its levels are always those of the graph.

    Attributes:
      lay_out: Blueprint to the logits of all towers {tower: float32 [batch]}, those of the graph's edges among them.
      loss_terms: (method, training config) to the losses beyond those of the levels, see `losses.CompositeLoss`.
    """

    lay_out: Callable[[Blueprint], dict[str, tf.Tensor]]
    loss_terms: Callable[[Method, TrainingConfig], Mapping[str, LossTerm]]


CHAIN = Design(chain_towers, lambda method, training: {})


@tf.autograph.experimental.do_not_convert
def build_network(
    method: Method,
    features: Sequence[Feature],
    edge_rates: Mapping[str, float],
    config: ModelConfig,
    *,
    precision: str = "float32",
    seed: int = 0,
    negative_keep_rate: float = 1.0,
    calibrate: bool = False,
    lay_out: Callable[[Blueprint], dict[str, tf.Tensor]] = chain_towers,
    co_occurrences: Mapping[str, CoOccurrences] | None = None,
) -> keras.Model:
    """Returns the network of a method.

    Args:
      method: The method.
      features: Its features.
      edge_rates: {edge: rate in (0, 1)} at which its towers start.
      config: Widths and dropout.
      precision: `float32`, or `bfloat16` for the towers' matrix products.
      seed: Seeds the weights.
      negative_keep_rate: Share of the unclicked rows that it is trained on; outside of training it predicts the whole log.
      calibrate: Whether it has a layer `calibration`, which can be fitted after training.
      lay_out: Of its design.
      co_occurrences: Of the behaviors of the levels that the method splits, see `Blueprint`.

    Returns:
      A functional model from {feature: [batch] or [batch, length]} to a dict of `log_probs`
      {sample space: {level: float32 [batch, 2]}} (see `ProbabilityGraph`) and `edge_logits` {edge, or other tower of
      the design: float32 [batch]}.
    """
    inputs = network_inputs(features)
    click = method.graphs[0].edges[0]
    if negative_keep_rate < 1:
        edge_rates = {**edge_rates, click: kept_rate(edge_rates[click], negative_keep_rate)}
    logits = lay_out(Blueprint(method, inputs, features, edge_rates, co_occurrences or {}, config, precision, seed))
    if negative_keep_rate < 1:
        logits[click] = KeptNegatives(negative_keep_rate, name=f"{_OURS}kept_negatives")(logits[click])
    log_probs = ProbabilityGraph(method.graphs, name=f"{_OURS}probability_graph")(logits)
    if calibrate:
        log_probs = Calibration(method.levels, name=f"{_OURS}calibration")(log_probs)
    return keras.Model(inputs, {"log_probs": log_probs, "edge_logits": logits}, name=method.name)


def split_network(network: keras.Model) -> tuple[list[HashedEmbeddings | NumericInputs], keras.Model]:
    """Returns a network as the layers that read features, and a model of the same weights from their outputs to predictions.

    Args:
      network: Of `build_network`.
    """
    readers = [layer for layer in network.layers if isinstance(layer, (HashedEmbeddings, NumericInputs))]
    return readers, keras.Model([reader.output for reader in readers], network.output, name=f"{network.name}_head")


def _layer_seed(seed: int, layer: str) -> int:
    """Returns a seed of a layer's own, so that no two layers start with the same numbers."""
    return int(np.random.SeedSequence((seed, zlib.crc32(layer.encode()))).generate_state(1)[0]) >> 2


def _trunk(
    inputs: Mapping[str, tf.Tensor], features: Sequence[Feature], config: ModelConfig, name: str, seed: int
) -> tf.Tensor:
    """Returns what the towers of one chain read: float32 [batch, width]."""
    hashed = [feature for feature in features if isinstance(feature, HashedFeature)]
    numeric = [feature for feature in features if isinstance(feature, NumericFeature)]
    parts = []
    if hashed:
        embeddings = HashedEmbeddings(hashed, _layer_seed(seed, f"embeddings{name}"), name=f"{_OURS}embeddings{name}")
        parts.append(embeddings({f.name: inputs[f.name] for f in hashed}))
    if numeric:
        parts.append(NumericInputs(numeric, name=f"{_OURS}numeric{name}")({f.name: inputs[f.name] for f in numeric}))
    trunk = start = keras.layers.Concatenate(name=f"{_OURS}inputs{name}")(parts) if len(parts) > 1 else parts[0]
    for i in range(config.cross_layers):
        kernel = keras.initializers.TruncatedNormal(stddev=0.05, seed=_layer_seed(seed, f"cross{name}_{i}"))
        trunk = tfrs.layers.dcn.Cross(kernel_initializer=kernel, name=f"{_OURS}cross{name}_{i}")(start, trunk)
    return trunk
