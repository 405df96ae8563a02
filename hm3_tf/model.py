"""The model that is trained: a network and a task."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from data_pipeline.inputs import select_features
from data_pipeline.schema import Schema
from data_pipeline.statistics import SplitStatistics, no_statistics
from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import Config, checked
from hm3_tf.designs import get_design
from hm3_tf.errors import ConfigError
from hm3_tf.exchange import TableExchange
from hm3_tf.features import Feature
from hm3_tf.keras_metrics import TargetMetric
from hm3_tf.layers import HashedEmbeddings
from hm3_tf.losses import CompositeLoss
from hm3_tf.methods import Method, fitting_methods
from hm3_tf.network import build_network
from hm3_tf.optimizers import LazyAdam, make_optimizer, reset_moments


class LossMeter(keras.metrics.Metric):
    """Sums the loss and each of its parts over rows, so that any stretch of steps has exact means.

    Args:
      names: Names of the parts.
      **kwargs: Of `keras.metrics.Metric`.
    """

    def __init__(self, names: Sequence[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self._names = ("loss", *names)
        self.sums = self.add_weight("sums", (len(self._names) + 1,), initializer="zeros", dtype=tf.float64)

    def update_state(self, loss: tf.Tensor, parts: Sequence[tf.Tensor], rows: tf.Tensor) -> None:
        """Adds a batch: sums over its rows, float32 scalars, and its number of rows (sum of weights)."""
        self.sums.assign_add(tf.cast(tf.stack([loss, *parts, rows]), tf.float64))

    def reset_state(self) -> None:
        """Starts anew."""
        self.sums.assign(tf.zeros_like(self.sums))

    def result(self) -> tf.Tensor:
        """Returns the mean loss of the rows since the last reset: float64 scalar, nats an impression."""
        return tf.math.divide_no_nan(self.sums[0], self.sums[-1])

    def rows(self, since: tf.Tensor) -> float:
        """Returns the number of rows (sum of weights) since an earlier value of `sums`."""
        return float(self.sums[-1] - since[-1])

    def means(self, since: tf.Tensor) -> dict[str, float]:
        """Returns the means over the rows since an earlier value of `sums`: {"loss" or part: nats an impression}."""
        difference = (self.sums.read_value() - since).numpy()
        return dict(zip(self._names, (difference[:-1] / max(difference[-1], 1e-12)).tolist()))


class ConversionModel(tfrs.Model):
    """A network and the task that trains it.

    The loss is divided by the number of replicas: each sees its part of the global batch, and their gradients add up.

    Args:
      network: Features to predictions, see `build_network`.
      task: Labels and predictions to a loss.

    Attributes:
      agreement: What workers exchange in each step of training, or None; see `distribute.Agreement`.
    """

    agreement: Any = None

    def __init__(self, network: keras.Model, task: CompositeLoss) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.loss_meter = LossMeter(task.names, name="mean_loss")
        self.target_metrics = [TargetMetric(name) for name in _targets(task.levels)]
        self.exchange: TableExchange | None = None

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> dict[str, Any]:
        """Runs the network: {feature: [batch] or [batch, length]} to its predictions."""
        return self.network(inputs, training=training)

    def compute_loss(self, inputs: tuple, training: bool = False) -> tf.Tensor:
        """Returns this replica's part of the loss of the global batch.

        Args:
          inputs: (features, labels) or (features, labels, sample weights), as the reader yields them.
          training: Whether dropout is on.

        Returns:
          float32 scalar.
        """
        features, labels, *rest = inputs
        predictions = self(features, training=training)
        weights = rest[0] if rest else tf.ones_like(next(iter(labels.values())))
        loss = self.task(labels, predictions, sample_weight=weights)
        parts = self.task.row_losses(labels, predictions)
        sums = [tf.reduce_sum(parts[name] * weights) for name in self.task.names]
        rows = tf.cast(tf.shape(weights)[0], tf.float32)
        self.loss_meter.update_state(loss * rows, sums, tf.reduce_sum(weights))
        if not training:
            self._update_target_metrics(labels, predictions["log_probs"], weights > 0)
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def _update_target_metrics(self, labels: dict[str, tf.Tensor], log_probs: dict, real: tf.Tensor) -> None:
        click = self.task.levels[0]
        for metric, (space, level) in zip(self.target_metrics, _targets(self.task.levels).values()):
            among = real & (labels[click] > 0) if space == click else real
            metric.update_state(labels[level], log_probs[space][level], among)

    def reset_embeddings(self, draw: int) -> None:
        """Starts the embeddings and their moments anew, and leaves all else as it is.

        Args:
          draw: Which of the draws of the run's seed.
        """
        for layer in self._embeddings():
            layer.reset(draw)
            reset_moments(self.optimizer, layer.trainable_variables)

    def _embeddings(self) -> list[HashedEmbeddings]:
        return [layer for layer in self.network.layers if isinstance(layer, HashedEmbeddings)]

    def plan_exchange(self, batch: dict[str, tf.Tensor]) -> None:
        """Lets few bytes of the tables' gradients cross between replicas, see `TableExchange`; Keras' Adam keeps Keras' way.

        Args:
          batch: {feature: [batch] or [batch, length]} of one replica, the same on all workers.
        """
        layers = self._embeddings()
        if layers and isinstance(self.optimizer, LazyAdam):
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self.optimizer.exchange = self.exchange = TableExchange(layers, batch, replicas)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of every step; those of the targets are of evaluation only, as replicas would add them up each step."""
        return [metric for metric in super().metrics if not isinstance(metric, TargetMetric)]

    def reset_metrics(self) -> None:
        """Starts all metrics anew."""
        super().reset_metrics()
        for metric in self.target_metrics:
            metric.reset_state()

    @tf.autograph.experimental.do_not_convert
    def train_step(self, inputs: tuple) -> dict[str, tf.Tensor]:
        """Takes a step; returns the mean loss since the start of the epoch."""
        if self.agreement is not None:
            self.agreement.exchange()
        return {"loss": super().train_step(inputs)[self.loss_meter.name]}

    @tf.autograph.experimental.do_not_convert
    def test_step(self, inputs: tuple) -> dict[str, tf.Tensor]:
        """Evaluates a batch; returns the mean loss and the figures of the targets since the start."""
        figures = {"loss": super().test_step(inputs)[self.loss_meter.name]}
        for metric in self.target_metrics:
            figures |= metric.result()
        return figures


def _targets(levels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns {name of a probability: (sample space, level)}."""
    click, *between, purchase = levels
    return {
        "pctr": (IMPRESSION, click),
        "pcvr": (click, purchase),
        "pctcvr": (IMPRESSION, purchase),
        **{f"p_{level}": (IMPRESSION, level) for level in between},
    }


def probability_names(levels: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of `probabilities`, in order."""
    return tuple(_targets(levels))


def probabilities(predictions: dict[str, Any], levels: Sequence[str]) -> dict[str, tf.Tensor]:
    """Returns what a model is asked for.

    Args:
      predictions: Of the network.
      levels: The method's levels; the first is the click, the last the conversion.

    Returns:
      {"pctr", "pcvr", "pctcvr", and "p_" + each level between: float32 [batch]}: P(click), P(conversion | click),
      P(conversion) and P(level), the latter two over impressions.
    """
    log_probs = predictions["log_probs"]
    return {name: tf.exp(log_probs[space][level][..., 0]) for name, (space, level) in _targets(levels).items()}


def prediction_function(
    model: ConversionModel, levels: Sequence[str]
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns the traced function from the network's inputs to `probabilities`, as outside of training."""

    @tf.function(reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def predict(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return probabilities(model.network(features, training=False), levels)

    return predict


def model_features(config: Config, schema: Schema, train: SplitStatistics) -> tuple[Feature, ...]:
    """Returns the features that a config selects from a log.

    Args:
      config: The config.
      schema: The log's schema.
      train: Statistics of the training split.

    Returns:
      The features.

    Raises:
      ConfigError: The config names a column or table that is not one.
    """
    model = config.model
    return select_features(
        schema,
        train,
        names=model.features,
        default_dim=model.embedding_dim,
        dims=model.embedding_dims,
        buckets=model.hash_buckets,
    )


def _check_levels(method: Method, schema: Schema) -> None:
    """Checks that the log has the levels of the method."""
    levels = [level.name for level in schema.levels]
    for name in method.log_levels:
        if name not in levels:
            raise ConfigError(
                f"method {method.name!r}: expected levels of the log, got {name!r}, which is none of "
                f"{', '.join(levels)}; use a method whose levels the log has "
                f"({', '.join(fitting_methods(levels)) or 'none'}), or name the levels so in the schema"
            )


def _check_gates(method: Method, schema: Schema) -> None:
    """Checks that the labels are nested by the gates of the method: else they hold rows of probability 0."""
    gates = [level.name for level in schema.levels if level.gate]
    for behavior in (behavior for graph in method.graphs for behavior in graph.behaviors[:-1]):
        if behavior.gate and behavior.name not in gates:
            raise ConfigError(
                f"the behavior graph of {method.name!r}: expected its gate {behavior.name!r} to be a gate of the log, which "
                f'has {gates}; give the level "gate": true in the schema, or take the gate out of the graph'
            )
    order = {level.name: place for place, level in enumerate(schema.levels)}
    for graph in method.graphs:
        parts = [[name for name in method.merged_levels.get(v, (v,)) if name in order] for v in graph.levels]
        for i, behavior in enumerate(graph.behaviors):
            early = [
                name for later in parts[i + 1 :] for name in later if any(order[name] < order[g] for g in parts[i])
            ]
            if behavior.gate and early:
                raise ConfigError(
                    f"schema: expected the gate {behavior.name!r} before the levels it gates in {method.name!r}, but {early} "
                    "stand before it; put the levels into the order of the hierarchy"
                )


def build_model(config: Config, schema: Schema, statistics: SplitStatistics | None = None) -> ConversionModel:
    """Returns a compiled Keras model: fit, evaluate, predict.

    Args:
      config: The run's config.
      schema: The log's schema.
      statistics: Of the training split: moments of numeric columns, rates at which towers start. Without them numeric
        columns are taken as standardized and towers start at probability 1/2.

    Returns:
      The model. It reads what `data_pipeline.read.Reader` yields.

    Raises:
      ConfigError: Config and schema do not fit.
    """
    config = checked(config)
    method, training = config.method, config.training
    _check_levels(method, schema)
    _check_gates(method, schema)
    train = statistics or no_statistics(schema)
    design = get_design(method.design)
    graphs = (*method.heads, *method.graphs)
    rates = {e: r for graph in graphs for e, r in train.edge_rates(graph, method.merged_levels).items()}
    features = model_features(config, schema, train)
    network = build_network(
        method,
        features,
        rates,
        config.model,
        precision=training.precision,
        seed=training.seed,
        negative_keep_rate=config.data.negative_keep_rate,
        calibrate=training.calibrate,
        lay_out=design.lay_out,
        co_occurrences={level: train.co_occurrences(schema, level) for level in method.split_levels},
    )
    weights = {**method.loss_weights, **training.loss_weights}
    terms = design.loss_terms(method, training)
    model = ConversionModel(network, CompositeLoss(method.graphs, weights, training.edge_loss_weight, terms))
    optimizer = make_optimizer(training.optimizer, training.learning_rate)
    model.compile(optimizer=optimizer, weighted_metrics=[])
    return model
