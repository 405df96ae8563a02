"""Figures of binary predictions, exact at 0.1 % positives."""

from typing import Any

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the area under the ROC curve, exact by rank: P(score of a positive > score of a negative), ties count half.

    >>> auc(np.array([True, False, True, False]), np.array([0.9, 0.1, 0.4, 0.4]))
    0.875

    Args:
      labels: bool [rows].
      scores: float [rows], any monotone function of the probability.

    Returns:
      A number in [0, 1], or None where one class is missing.
    """
    labels = np.asarray(labels, bool)
    positives = int(np.count_nonzero(labels))
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    higher, lower = np.sort(scores[labels]), np.sort(scores[~labels])
    beaten = np.searchsorted(lower, higher, "left").sum() + np.searchsorted(lower, higher, "right").sum()
    return float(beaten / (2 * positives * negatives))


def binary_metrics(labels: np.ndarray, log_pair: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one target.

    Args:
      labels: bool [rows].
      log_pair: float [rows, 2], natural-log (P, 1 - P).

    Returns:
      `rows`, `positives`, `rate` (observed), `prediction` (mean P), `pcoc` (prediction / rate), `auc` and `log_loss` (nats a
      row); None where a figure does not exist.
    """
    labels = np.asarray(labels, bool)
    pair = np.asarray(log_pair, np.float64)
    rows, positives = len(labels), int(np.count_nonzero(labels))
    expected = float(np.exp(pair[:, 0]).sum())
    return {
        "rows": rows,
        "positives": positives,
        "rate": positives / rows if rows else None,
        "prediction": expected / rows if rows else None,
        "pcoc": expected / positives if positives else None,
        "auc": auc(labels, pair[:, 0]),
        "log_loss": float(-np.where(labels, pair[:, 0], pair[:, 1]).mean()) if rows else None,
    }
