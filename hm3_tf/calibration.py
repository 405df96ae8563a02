"""From the probabilities that a network is trained to give to those of the log: layers that act outside of training only."""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.metrics import bin_odds
from hm3_tf.probability import log_bernoulli

_LOGGER = logging.getLogger(__name__)
_IDENTITY = (1.0, 0.0)
_MOST_NEWTON_STEPS = 100


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


class Calibration(keras.layers.Layer):
    """Maps the log-odds of each target by a line of its own that ascends, so that no ranking changes (Platt, 1999).

    The targets are mapped each by itself: after it, pctcvr is no longer exactly pctr times pcvr. The lines are the identity
    until `fit`.

    Args:
      levels: Levels of the method; the first is the click, the last the conversion.
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, levels: Sequence[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self._targets = [*((IMPRESSION, level) for level in levels), (levels[0], levels[-1])]
        start = keras.initializers.Constant([_IDENTITY] * len(self._targets))
        self.lines = self.add_weight("lines", (len(self._targets), 2), initializer=start, trainable=False)

    def call(
        self, log_probs: Mapping[str, Mapping[str, tf.Tensor]], training: bool | None = None
    ) -> dict[str, dict[str, tf.Tensor]]:
        """Maps a batch, unless `training`.

        Args:
          log_probs: {sample space: {level: float32 [batch, 2]}}, natural-log (P, 1 - P).
          training: Whether to leave it as it is.

        Returns:
          The same, calibrated for all levels over impressions and for the conversion given a click.
        """
        result = {space: dict(levels) for space, levels in log_probs.items()}
        for (space, level), line in zip(self._targets, () if training else tf.unstack(self.lines)):
            pair = result[space][level]
            result[space][level] = log_bernoulli(line[0] * (pair[:, 0] - pair[:, 1]) + line[1])
        return result

    def fit(self, counts: Sequence[np.ndarray]) -> None:
        """Fits the lines.

        Args:
          counts: Of each target (the levels, then the conversion given a click) int [2, bins], rows of a split by label and
            log-odds, as `metrics.TargetCounts` has them of predictions that are not calibrated.
        """
        self.lines.assign([platt_line(target) for target in counts])

    def reset(self) -> None:
        """Makes the lines the identity again."""
        self.lines.assign([_IDENTITY] * len(self._targets))


def platt_line(counts: np.ndarray) -> tuple[float, float]:
    """Returns the (scale, shift) of log-odds of the greatest likelihood.

    A Gaussian prior of unit variance about the identity keeps the answer finite where classes are separable or missing, and
    weighs no more than a row or two elsewhere.

    Args:
      counts: int [2, bins], rows by label and bin of the log-odds.

    Returns:
      (scale, shift), scale > 0; the identity where the fit would turn the ranking round.
    """
    used = np.flatnonzero(counts.any(axis=0))
    scale, shift = logistic_line(bin_odds(counts.shape[1])[used], counts[0, used], counts[1, used], prior=1.0)
    if scale <= 0:
        _LOGGER.warning(
            "calibration: expected odds that rise with the prediction, got a slope of %.3f: left as it is", scale
        )
        return _IDENTITY
    return scale, shift


def logistic_line(
    odds: np.ndarray, negatives: np.ndarray, positives: np.ndarray, prior: float = 0.0
) -> tuple[float, float]:
    """Returns the (scale, shift) of log-odds of the greatest likelihood, by Newton's method (Platt, 1999).

    Args:
      odds: float [rows], log-odds.
      negatives: [rows], weight of each row as a negative.
      positives: [rows], its weight as a positive.
      prior: Weight of a Gaussian prior of unit variance about the identity, in rows.

    Returns:
      (scale, shift); NaN where no line is the best, as all odds are one.
    """
    features, rows = np.stack([odds, np.ones(len(odds))]), negatives + positives

    def loss(line: np.ndarray) -> float:
        logits = line @ features
        return rows @ np.logaddexp(0, logits) - positives @ logits + prior * ((line - _IDENTITY) ** 2).sum() / 2

    line = np.array(_IDENTITY)
    if not prior and np.ptp(odds) == 0:
        return float("nan"), float("nan")
    for _ in range(_MOST_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-line @ features))
        gradient = features @ (rows * p - positives) + prior * (line - _IDENTITY)
        step = np.linalg.solve((features * (rows * p * (1 - p))) @ features.T + prior * np.eye(2), gradient)
        while loss(line - step) > loss(line) + 1e-9 * abs(loss(line)):
            step /= 2
        line = line - step
        if np.abs(step).max() < 1e-9:
            break
    return float(line[0]), float(line[1])
