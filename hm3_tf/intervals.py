"""95 % intervals: DeLong's for an AUC and a paired difference of two, a bootstrap over groups for all else.

Both are computed from counts that add up, so intervals need no second pass and no more memory on a larger log
(docs/adr/0008-figures-from-counts.md). The bootstrap draws whole groups: Davison and Hinkley, Bootstrap Methods and their
Application (1997), 3.8.
"""

import functools

import numpy as np

from hm3_tf.metrics import RANGE, figures, row_sums, score_bins

BUCKETS = 256
_REPLICATES = 400
_RESOLUTION = 8  # bins a unit of log-odds: the spread of a figure needs no more
_JOINT_RESOLUTION = 128
Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def _placements(counts: np.ndarray) -> np.ndarray:
    """Returns the share of the other class that a row of each class and bin is on the right side of, float64 [2, bins]."""
    negatives, positives = counts.astype(np.float64)
    above = np.cumsum(positives[::-1])[::-1] - positives / 2
    return np.stack([above / positives.sum(), (np.cumsum(negatives) - negatives / 2) / negatives.sum()])


def _variance(weights: np.ndarray, values: np.ndarray) -> float:
    """Returns the variance of the mean of values that stand `weights` times each."""
    rows = weights.sum()
    mean = weights @ values / rows
    return float(weights @ (values - mean) ** 2 / (rows - 1) / rows)


def auc_variance(counts: np.ndarray) -> float:
    """Returns DeLong's variance of an AUC (DeLong et al., Biometrics 1988), by midranks of bins.

    Args:
      counts: int [2, bins], rows by label and bin; at least two rows of each label.
    """
    return sum(_variance(rows, placements) for rows, placements in zip(counts, _placements(counts)))


def normal_interval(value: float, variance: float) -> tuple[float, float]:
    """Returns the 95 % interval of an estimate that is distributed normally."""
    return value - Z * variance**0.5, value + Z * variance**0.5


class JointCounts:
    """Rows by label and the bins of two models' scores, sparse; for the paired difference of their AUCs.

    The variance of the difference needs both scores of each row. Bins of 1/128 of log-odds are fine enough for a
    variance, and two models of one log fill few of them: the memory does not grow with the log.
    """

    def __init__(self) -> None:
        self._cells, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)

    def update(self, labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
        """Adds rows: labels bool [rows], and of each model float [rows, 2], natural-log (P, 1 - P)."""
        bins = 2 * RANGE * _JOINT_RESOLUTION
        cells = (labels * bins + score_bins(first, _JOINT_RESOLUTION)) * bins + score_bins(second, _JOINT_RESOLUTION)
        self._add(cells, np.ones_like(cells))

    def merge(self, other: "JointCounts") -> None:
        """Adds the rows of another."""
        self._add(other._cells, other._rows)

    def _add(self, cells: np.ndarray, rows: np.ndarray) -> None:
        self._cells, place = np.unique(np.concatenate([self._cells, cells]), return_inverse=True)
        self._rows = np.bincount(place, np.concatenate([self._rows, rows])).astype(np.int64)

    def difference_variance(self) -> float:
        """Returns DeLong's variance of the first model's AUC less the second's; at least two rows of each label."""
        bins = 2 * RANGE * _JOINT_RESOLUTION
        label, first, second = self._cells // bins**2, self._cells // bins % bins, self._cells % bins

        def placements(scores: np.ndarray) -> np.ndarray:
            counts = np.bincount(label * bins + scores, self._rows, 2 * bins).reshape(2, bins)
            return _placements(counts)[label, scores]

        gaps = placements(first) - placements(second)
        return sum(_variance(self._rows[label == side], gaps[label == side]) for side in (0, 1))


class BucketCounts:
    """The rows of one target in buckets of whole groups, for the spread of its figures.

    Groups fall into buckets by their hash; as groups are independent, so are buckets, and they stand in for the groups.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((BUCKETS, 2, 2 * RANGE * _RESOLUTION), np.int32)
        self.sums = np.zeros((BUCKETS, 2))

    def update(self, groups: np.ndarray, labels: np.ndarray, log_pair: np.ndarray) -> None:
        """Adds rows: groups uint64 [rows], hashed; labels bool [rows], and float [rows, 2], natural-log (P, 1 - P)."""
        buckets = bucket_of(groups)
        cells = (buckets * 2 + labels) * self.counts.shape[2] + score_bins(log_pair, _RESOLUTION)
        np.add.at(self.counts.reshape(-1), cells, 1)
        for i, values in enumerate(row_sums(labels, log_pair).T):
            self.sums[:, i] += np.bincount(buckets, values, BUCKETS)

    def merge(self, other: "BucketCounts") -> None:
        """Adds the rows of another."""
        self.counts += other.counts
        self.sums += other.sums

    @property
    def filled(self) -> int:
        """Number of buckets that have rows, at most that of the groups."""
        return int(self.counts.any(axis=(1, 2)).sum())

    def replicates(self) -> dict[str, np.ndarray]:
        """Returns {figure: float64 [replicates]} of `metrics.figures`."""
        weights = bucket_weights()
        used = self.counts.any(axis=(0, 1)).nonzero()[0]
        counts = np.zeros((len(weights), *self.counts.shape[1:]))
        if len(used):
            part = slice(used[0], used[-1] + 1)
            values = self.counts[:, :, part].reshape(BUCKETS, -1).astype(np.float64)
            counts[:, :, part] = (weights @ values).reshape(len(weights), 2, -1)
        return figures(counts, weights @ self.sums)


def bucket_of(groups: np.ndarray) -> np.ndarray:
    """Returns the bucket of hashed groups uint64 [rows], int64 [rows]."""
    return (groups % np.uint64(BUCKETS)).astype(np.int64)


@functools.cache
def bucket_weights() -> np.ndarray:
    """Returns how often each replicate draws each bucket, float64 [replicates, buckets]; the same for all figures."""
    draws = np.random.default_rng(0).multinomial(BUCKETS, np.full(BUCKETS, 1 / BUCKETS), _REPLICATES)
    return draws.astype(np.float64)


def bootstrap_interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of an estimate.

    The quantiles are those of the replicates about their own mean, since a figure of resampled rows can be biased.

    Args:
      value: The estimate.
      replicates: float64 [replicates]; those that do not exist are left out.
    """
    present = replicates[np.isfinite(replicates)]
    if not len(present):
        return np.nan, np.nan
    low, high = np.quantile(present - present.mean(), (0.025, 0.975))
    return float(value + low), float(value + high)
