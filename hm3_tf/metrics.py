"""Figures of binary predictions from counts that add up: constant memory over batches, shards and workers.

The score of a row is the log-odds of its prediction. A histogram of the scores by label holds all that AUC, PR-AUC and the
calibration error need; two sums, of P and of the loss, give the rest exactly. Functions take counts float or int
[..., 2, bins], negatives then positives, and sums float64 [..., 2], so that a bootstrap evaluates all its replicates at once.
"""

from typing import Any

import numpy as np

RANGE = 32  # log-odds beyond it (P < 1.3e-14) share the outermost bins
RESOLUTION = 8192  # bins a unit of log-odds: two scores of one bin differ by at most 0.012 % in odds
CALIBRATION_BINS = 20


def score_bins(log_pair: np.ndarray, resolution: int) -> np.ndarray:
    """Returns the bin of each row's log-odds, int64 [rows].

    Args:
      log_pair: float [rows, 2], natural-log (P, 1 - P).
      resolution: Bins a unit of log-odds; there are 2 * RANGE * resolution.
    """
    bins = ((log_pair[:, 0] - log_pair[:, 1]) + RANGE) * resolution
    return np.clip(bins, 0, 2 * RANGE * resolution - 1).astype(np.int64)


def bin_odds(bins: int) -> np.ndarray:
    """Returns the log-odds in the middle of each bin, float64 [bins], ascending."""
    return (np.arange(bins) + 0.5) * (2 * RANGE / bins) - RANGE


def auc(counts: np.ndarray) -> np.ndarray:
    """Returns the area under the ROC curve, [...]: P(score of a positive > score of a negative), one bin counts half.

    >>> float(auc(np.array([[1, 1, 0], [0, 1, 1]])))  # 3 of 4 pairs in order, and half of the one within a bin
    0.875
    """
    negatives, positives = counts[..., 0, :], counts[..., 1, :]
    beaten = np.cumsum(negatives, axis=-1) - negatives / 2
    return (positives * beaten).sum(axis=-1) / (positives.sum(axis=-1) * negatives.sum(axis=-1).astype(float))


def auc_error(counts: np.ndarray) -> np.ndarray:
    """Returns the most by which `auc` can be off the AUC of the scores themselves: half the pairs within a bin, [...]."""
    negatives, positives = counts[..., 0, :].astype(float), counts[..., 1, :].astype(float)
    return (positives * negatives).sum(axis=-1) / (2 * positives.sum(axis=-1) * negatives.sum(axis=-1))


def average_precision(counts: np.ndarray) -> np.ndarray:
    """Returns the area under the precision-recall curve, [...]: the mean over positives of the precision at their bin."""
    found = np.cumsum(counts[..., ::-1], axis=-1)
    precision = found[..., 1, :] / np.maximum(found.sum(axis=-2), 1e-300)
    return (counts[..., 1, ::-1] * precision).sum(axis=-1) / counts[..., 1, :].sum(axis=-1)


def bin_rates(bins: int) -> np.ndarray:
    """Returns P in the middle of each bin, float64 [bins], ascending."""
    return 1 / (1 + np.exp(-bin_odds(bins)))


def calibration_bins(rows: np.ndarray) -> np.ndarray:
    """Returns which of 20 bins of equal numbers of rows each bin of the score is in (Nixon et al., CVPR Workshops 2019).

    Args:
      rows: [bins], rows by bin of the score.

    Returns:
      int64 [bins], ascending.
    """
    rank = (np.cumsum(rows) - rows / 2) / max(rows.sum(), 1)
    return np.minimum((rank * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def calibration_error(counts: np.ndarray) -> np.float64:
    """Returns the expected calibration error: the mean over rows of |observed - predicted rate| of their bin.

    The bins are those of `calibration_bins`. What the rows of a bin happen to be adds to it: of a calibrated model it is about
    the standard error of a bin's rate, not 0, so it has no interval (docs/adr/0008-figures-from-counts.md).

    Args:
      counts: int [2, bins], rows by label and bin of the score.
    """
    rows = counts.sum(axis=0)
    excess = counts[1] - rows * bin_rates(len(rows))
    return np.abs(np.bincount(calibration_bins(rows), excess)).sum() / np.float64(rows.sum())


def figures(counts: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the figures of one target that have intervals.

    Args:
      counts: [..., 2, bins], rows by label and bin of the score.
      sums: float64 [..., 2], of P and of the loss in nats.

    Returns:
      {figure: float64 [...]}, not finite where it does not exist: `auc`, `pr_auc`, `log_loss` (nats a row),
      `normalized_entropy` (log-loss over that of predicting the mean rate: He et al., ADKDD 2014), `pcoc` (predicted over
      observed).
    """
    positives, rows = counts[..., 1, :].sum(axis=-1), counts.sum(axis=(-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        rate, log_loss = positives / rows, sums[..., 1] / rows
        return {
            "auc": auc(counts),
            "pr_auc": average_precision(counts),
            "log_loss": log_loss,
            "normalized_entropy": log_loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)),
            "pcoc": sums[..., 0] / positives,
        }


def number(value: Any) -> float | None:
    """Returns a figure as JSON has it: None where it does not exist."""
    return float(value) if np.isfinite(value) else None


class TargetCounts:
    """What the figures of one target need of the rows seen so far; two of them add up.

    Args:
      resolution: Bins a unit of log-odds.
    """

    def __init__(self, resolution: int = RESOLUTION) -> None:
        self._resolution = resolution
        self.counts = np.zeros((2, 2 * RANGE * resolution), np.int64)
        self.sums = np.zeros(2)

    def update(self, labels: np.ndarray, log_pair: np.ndarray) -> None:
        """Adds rows: labels bool [rows], and float [rows, 2], natural-log (P, 1 - P)."""
        labels = np.asarray(labels, bool)
        cells = score_bins(log_pair, self._resolution) + labels * np.int64(self.counts.shape[1])
        np.add.at(self.counts.reshape(-1), cells, 1)
        self.sums += row_sums(labels, log_pair).sum(axis=0)

    def merge(self, other: "TargetCounts") -> None:
        """Adds the rows of another, of the same resolution."""
        self.counts += other.counts
        self.sums += other.sums

    def result(self) -> dict[str, Any]:
        """Returns the figures.

        Returns:
          `rows`, `positives`, `rate` (observed), `prediction` (mean P), those of `figures`, `ece` (expected calibration
          error) and `auc_error`, the bound on what the bins can have changed of the AUC; None where a figure does not exist.
        """
        positives, rows = int(self.counts[1].sum()), int(self.counts.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            means = {"rate": np.float64(positives) / rows, "prediction": self.sums[0] / rows}
            errors = {"ece": calibration_error(self.counts), "auc_error": auc_error(self.counts)}
            values = {**means, **figures(self.counts, self.sums), **errors}
        return {"rows": rows, "positives": positives, **{name: number(value) for name, value in values.items()}}


def row_sums(labels: np.ndarray, log_pair: np.ndarray) -> np.ndarray:
    """Returns what is summed of each row: P and the loss in nats, float64 [rows, 2]."""
    pair = np.asarray(log_pair, np.float64)
    return np.stack([np.exp(pair[:, 0]), -np.where(labels, pair[:, 0], pair[:, 1])], axis=1)
