"""Figures of a target as a Keras metric, for `fit` with validation data and `evaluate`."""

import tensorflow as tf
import tf_keras as keras

from hm3_tf.metrics import CALIBRATION_BINS, RANGE, bin_rates

_RESOLUTION = 1024  # bins a unit of log-odds: a result after each batch costs little


class TargetMetric(keras.metrics.Metric):
    """The figures of a target over the rows since the last reset, from a histogram as in `metrics`.

    Args:
      name: Name of the target; its figures are called `<name>_auc` and so on: `auc`, `pr_auc`, `log_loss`,
        `normalized_entropy`, `pcoc` and `ece`, defined as in `metrics`.
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
        places = (pair[:, 0] - pair[:, 1] + RANGE) * _RESOLUTION
        bins = tf.cast(tf.clip_by_value(places, 0, self.counts.shape[1] - 1), tf.int32)
        cells = tf.stack([tf.cast(labels, tf.int32), bins], axis=1)
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
        both = negatives + positives
        rows, happened = tf.reduce_sum(both), tf.reduce_sum(positives)
        rate, log_loss = happened / rows, self.sums[1] / rows
        beaten = tf.cumsum(negatives) - negatives / 2
        found = [tf.cumsum(counts, reverse=True) for counts in (positives, both)]
        figures = {
            "auc": tf.reduce_sum(positives * beaten) / (happened * (rows - happened)),
            "pr_auc": tf.reduce_sum(positives * tf.math.divide_no_nan(*found)) / happened,
            "log_loss": log_loss,
            "normalized_entropy": -log_loss / (rate * tf.math.log(rate) + (1 - rate) * tf.math.log1p(-rate)),
            "pcoc": self.sums[0] / happened,
            "ece": _calibration_error(both, positives),
        }
        return {f"{self.name}_{figure}": value for figure, value in figures.items()}


def _calibration_error(rows: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
    """Returns `metrics.calibration_error` of float64 [bins] rows, of which some are positive."""
    total = tf.reduce_sum(rows)
    rank = tf.math.divide_no_nan(tf.cumsum(rows) - rows / 2, total)
    bins = tf.minimum(tf.cast(rank * CALIBRATION_BINS, tf.int32), CALIBRATION_BINS - 1)
    excess = positives - rows * tf.constant(bin_rates(rows.shape[0]))
    return tf.reduce_sum(tf.abs(tf.math.segment_sum(excess, bins))) / total
