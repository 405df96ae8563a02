"""Figures of a target as a Keras metric, for `fit` with validation data and `evaluate`."""

import tensorflow as tf
import tf_keras as keras

from hm3_tf.metrics import RANGE

_RESOLUTION = 1024  # bins a unit of log-odds: a result after each batch costs little


class TargetMetric(keras.metrics.Metric):
    """AUC, log-loss and PCOC of a target over the rows since the last reset, from a histogram as in `metrics`.

    Args:
      name: Name of the target; its figures are called `<name>_auc`, `<name>_log_loss` and `<name>_pcoc`.
      **kwargs: Of `keras.metrics.Metric`.
    """

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        bins = 2 * RANGE * _RESOLUTION
        self.counts = self.add_weight("counts", (2, bins), initializer="zeros", dtype=tf.float64)
        self.sums = self.add_weight("sums", (2,), initializer="zeros", dtype=tf.float64)

    def update_state(self, labels: tf.Tensor, log_pair: tf.Tensor, among: tf.Tensor) -> None:
        """Adds a batch.

        Args:
          labels: float32 [batch], 0 or 1.
          log_pair: float32 [batch, 2], natural-log (P, 1 - P).
          among: bool [batch], which rows are the target's.
        """
        labels, pair = tf.boolean_mask(labels, among) > 0, tf.boolean_mask(log_pair, among)
        bins = tf.cast((pair[:, 0] - pair[:, 1] + RANGE) * _RESOLUTION, tf.int32)
        cells = tf.stack([tf.cast(labels, tf.int32), tf.clip_by_value(bins, 0, self.counts.shape[1] - 1)], axis=1)
        self.counts.assign_add(tf.scatter_nd(cells, tf.ones_like(bins, tf.float64), self.counts.shape))
        pair = tf.cast(pair, tf.float64)
        loss = -tf.where(labels, pair[:, 0], pair[:, 1])
        self.sums.assign_add(tf.stack([tf.reduce_sum(tf.exp(pair[:, 0])), tf.reduce_sum(loss)]))

    def reset_state(self) -> None:
        """Starts anew."""
        for variable in (self.counts, self.sums):
            variable.assign(tf.zeros_like(variable))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns {figure: float64 scalar}, not a number where it does not exist."""
        negatives, positives = tf.unstack(tf.convert_to_tensor(self.counts))
        rows, happened = tf.reduce_sum(negatives + positives), tf.reduce_sum(positives)
        beaten = tf.reduce_sum(positives * (tf.cumsum(negatives) - negatives / 2))
        return {
            f"{self.name}_auc": beaten / (happened * tf.reduce_sum(negatives)),
            f"{self.name}_log_loss": self.sums[1] / rows,
            f"{self.name}_pcoc": self.sums[0] / happened,
        }
