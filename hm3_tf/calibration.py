"""From the probabilities that a network is trained to give to those of the log: layers that act outside of training only."""

import math

import tensorflow as tf
import tf_keras as keras


class KeptNegatives(keras.layers.Layer):
    """Takes the odds of a click from the rows that are trained on to the whole log.

    Where a share k of the unclicked rows is kept, the odds of a click are 1 / k times those of the log, so log k is added to
    the logit (He et al., ADKDD 2014, Section 6.3); all that is conditioned on the click is as in the log
    (docs/adr/0009-kept-negatives.md).

    Args:
      keep_rate: k, in (0, 1].
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, keep_rate: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self._shift = math.log(keep_rate)

    def call(self, logit: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the log-odds of a click among the rows trained on if `training`, else in the log: float32 [batch]."""
        return logit if training else logit + self._shift


def kept_rate(rate: float, keep_rate: float) -> float:
    """Returns the rate of clicks among the rows that are kept, where `rate` is that of the log."""
    return rate / (rate + (1 - rate) * keep_rate)
