"""Points of curves from the histogram of one target's scores: int [2, bins], negatives then positives (`metrics.TargetCounts`).

A curve of a hundred million rows and that of a hundred are drawn from as many points.
"""

import dataclasses

import numpy as np

from hm3_tf.intervals import Z
from hm3_tf.metrics import CALIBRATION_BINS, RANGE, bin_odds, bin_rates, calibration_bins

POINTS = 201


def operating_points(counts: np.ndarray, label: int, points: int = POINTS) -> np.ndarray:
    """Returns the rows that score at or above each of some thresholds.

    Args:
      counts: int [2, bins], with a row of `label`.
      label: The class whose rows space the thresholds out: the i-th leaves out at most the share i / (points - 1) of them,
        and all that whole bins allow.
      points: Number of thresholds.

    Returns:
      int64 [2, points], negatives then positives, descending from all rows to those of the last bin with `label`.
    """
    below = np.cumsum(counts, axis=1)
    wanted = np.arange(points) / (points - 1) * below[label, -1]
    bins = np.searchsorted(below[label], wanted)
    return below[:, -1:] - np.concatenate([np.zeros((2, 1), np.int64), below], axis=1)[:, bins]


def roc_curve(counts: np.ndarray) -> np.ndarray:
    """Returns points of the ROC curve, float64 [2, points]: false- and true-positive rate, from (0, 0) to (1, 1).

    Args:
      counts: int [2, bins], with rows of both classes.
    """
    above = np.concatenate([np.zeros((2, 1), np.int64), *(operating_points(counts, label) for label in (0, 1))], axis=1)
    return np.unique(above, axis=1) / counts.sum(axis=1, keepdims=True)


def precision_recall_curve(counts: np.ndarray) -> np.ndarray:
    """Returns points of the precision-recall curve, float64 [2, points]: recall, ascending, and precision.

    Args:
      counts: int [2, bins], with a positive.
    """
    above = np.unique(operating_points(counts, 1)[::-1], axis=1)
    return np.stack([above[0] / counts[1].sum(), above[0] / above.sum(axis=0)])


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predicted and observed rates of bins with equal numbers of rows, as the expected calibration error has them.

    Attributes:
      rows: int64 [bins].
      positives: int64 [bins].
      predicted: float64 [bins], mean P, ascending.
    """

    rows: np.ndarray
    positives: np.ndarray
    predicted: np.ndarray

    @property
    def observed(self) -> np.ndarray:
        """Share of positives, float64 [bins]."""
        return self.positives / self.rows

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the observed rate, float64 [bins] each (Wilson, JASA 1927), of independent rows."""
        centre = (self.positives + Z**2 / 2) / (self.rows + Z**2)
        spread = np.sqrt(self.positives * (1 - self.observed) + Z**2 / 4) * Z / (self.rows + Z**2)
        return np.maximum(centre - spread, 0), np.minimum(centre + spread, 1)


def reliability(counts: np.ndarray) -> Reliability:
    """Returns predicted against observed rates: int [2, bins]; bins without rows are left out."""
    total = counts.sum(axis=0)
    bins = calibration_bins(total)
    rows, positives, predicted = (
        np.bincount(bins, values, CALIBRATION_BINS) for values in (total, counts[1], total * bin_rates(len(total)))
    )
    used = rows > 0
    return Reliability(rows[used].astype(np.int64), positives[used].astype(np.int64), predicted[used] / rows[used])


def score_shares(counts: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the histogram of the log-odds of each class, over the range that has rows.

    Args:
      counts: int [2, bins].
      width: Of a bin of the result, in log-odds; a power of 2 of at least that of a bin of `counts`.

    Returns:
      (edges float64 [bins + 1], shares of the class's rows float64 [2, bins]); a class without rows has shares of 0.
    """
    coarse = counts.reshape(2, round(2 * RANGE / width), -1).sum(axis=2)
    used = np.flatnonzero(coarse.any(axis=0))
    first, last = (used[0], used[-1] + 1) if len(used) else (0, 0)
    edges = np.arange(first, last + 1) * width - RANGE
    return edges, coarse[:, first:last] / np.maximum(coarse.sum(axis=1, keepdims=True), 1)


def median_odds(counts: np.ndarray) -> tuple[float, float]:
    """Returns the median log-odds of negatives and of positives, up to the width of a bin: int [2, bins], rows of both."""
    below = np.cumsum(counts, axis=1)
    odds = bin_odds(counts.shape[1])
    negatives, positives = (odds[np.searchsorted(rows, rows[-1] / 2)] for rows in below)
    return float(negatives), float(positives)
