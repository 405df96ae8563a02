"""The network: features to the log-probabilities of a method's levels, as a functional Keras model."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from hm3_tf.calibration import Calibration, KeptNegatives, kept_rate
from hm3_tf.config import ModelConfig
from hm3_tf.features import Feature, HashedFeature, NumericFeature
from hm3_tf.layers import HashedEmbeddings, NumericInputs, ParallelTowers, ProbabilityGraph
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
) -> keras.Model:
    """Returns the network of a method.

    The chains of a method share nothing: one that has a single chain (all but BASE) has one embedding layer under all
    its towers.

    Args:
      method: The method.
      features: Its features.
      edge_rates: {edge: rate in (0, 1)} at which its towers start.
      config: Widths and dropout.
      precision: `float32`, or `bfloat16` for the towers' matrix products.
      seed: Seeds the weights.
      negative_keep_rate: Share of the unclicked rows that it is trained on; outside of training it predicts the whole log.
      calibrate: Whether it has a layer `calibration`, which can be fitted after training.

    Returns:
      A functional model from {feature: [batch] or [batch, length]} to a dict of `log_probs`
      {sample space: {level: float32 [batch, 2]}} (see `ProbabilityGraph`) and `edge_logits` {edge: float32 [batch]}.
    """
    inputs = network_inputs(features)
    logits: dict[str, tf.Tensor] = {}
    click = method.graphs[0].edges[0]
    if negative_keep_rate < 1:
        edge_rates = {**edge_rates, click: kept_rate(edge_rates[click], negative_keep_rate)}
    for i, graph in enumerate(method.graphs):
        name = f"_{i}" if i else ""
        trunk = _trunk(inputs, features, config, name, seed)
        towers = ParallelTowers(
            {edge: edge_rates[edge] for edge in graph.edges},
            config.tower_units,
            config.dropout,
            _layer_seed(seed, f"towers{name}"),
            name=f"{_OURS}towers{name}",
            dtype=_POLICIES[precision],
        )
        logits |= towers(trunk)
    if negative_keep_rate < 1:
        logits[click] = KeptNegatives(negative_keep_rate, name=f"{_OURS}kept_negatives")(logits[click])
    log_probs = ProbabilityGraph(method.graphs, name=f"{_OURS}probability_graph")(logits)
    if calibrate:
        log_probs = Calibration(method.levels, name=f"{_OURS}calibration")(log_probs)
    return keras.Model(inputs, {"log_probs": log_probs, "edge_logits": logits}, name=method.name)


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
