"""Counts of bounded size, from which validation finds leaks, drift, new values, duplicates and rates a day."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.statistics import mix

FEWEST = 10  # rows of either class below which no AUC is told
ALIKE = 8  # rows that come together, as the eight of a page: of so many one is counted
LARGEST_EXACT = 2.0**24  # float32 does not tell integers above it from their neighbors
_ORDER_BINS = 4096  # of a float32: its sign, its exponent and three bits of its mantissa
_SEEN_BITS, _SLOT_BITS = 20, 13  # of a hash
_UNTOLD = 0.1  # standard deviation of a share, above which it is not told
_SLOTS = 2**_SLOT_BITS + 1  # of hashed values, the first of which is for missing ones
_RUN = 64  # rows that are in the same half, so that neighbors that are alike do not tell each other's label
_RATE_BINS = 4096  # of a float32 in [0, 1]: its exponent and five bits of its mantissa
_CELLS = 256  # into which hashed values are folded for drift
_QUANTILES = 32  # into which numbers are, by the training split
_ROWS_KEPT = 2**17
_MOST_DAYS = 4096


def auc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Returns the area under the ROC curve of counts in ascending order of the score, int [bins] each; NaN for too few."""
    if min(negatives.sum(), positives.sum()) < FEWEST:
        return float("nan")
    beaten = np.cumsum(negatives) - negatives / 2
    return float((positives * beaten).sum() / positives.sum() / negatives.sum())


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Jensen-Shannon divergence of two histograms, in bits, less what chance accounts for.

    Two samples of n and m rows from one distribution over k cells are (k - 1) (1/n + 1/m) / (8 ln 2) apart on average (Lin,
    1991, to second order). `ALIKE` times that is taken off: rows of a user or a page come together, so there are fewer
    of them than it seems.

    Args:
      first: Rows a cell, int [cells].
      second: The same of the other sample.

    Returns:
      Bits in [0, 1]; 0 where a sample is empty.
    """
    rows = np.array([first.sum(), second.sum()], np.float64)
    if not rows.all():
        return 0.0
    shares = np.stack([first, second]) / rows[:, np.newaxis]
    mean = np.broadcast_to(shares.mean(axis=0), shares.shape)
    held = shares > 0
    bits = (shares[held] * np.log2(shares[held] / mean[held])).sum() / 2
    by_chance = ALIKE * (np.count_nonzero(mean[0]) - 1) * (1 / rows).sum() / (8 * np.log(2))
    return float(np.clip(bits - by_chance, 0, 1))


def fingerprints(values: np.ndarray) -> np.ndarray:
    """Returns a hash of each value: int64, float32 or bytes, any shape, to uint64 of the same shape."""
    if values.dtype == np.float32:
        bits = values.view(np.uint32).astype(np.uint64)
    elif values.dtype == np.int64:
        bits = values.view(np.uint64)
    else:
        bits = tf.strings.to_hash_bucket_fast(values, 2**63 - 1).numpy().view(np.uint64)
    return mix(bits)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that are counted together.

    Attributes:
      halves: Half of the rows that each belongs to, 0 or 1, int64 [rows].
      labels, positives: Which label happened on which of the rows, int64 [all that happened] each.
    """

    halves: np.ndarray
    labels: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, first: int) -> "Rows":
        """Returns the rows from number `first` on, of which these labels are told: bool [labels, rows]."""
        return cls((first + np.arange(labels.shape[1])) // _RUN % 2, *np.nonzero(labels))


class OrderCounts:
    """Rows of a numeric column by the order of its numbers, and how many of them each label happened on.

    Numbers are counted by the leading bits of their distance from the mean of the first batch, in deviations: an order over
    any range, fine about the mean. Missing ones are lowest.

    Args:
      labels: Number of labels.
      train: Counts of the training split, whose bins are used; None for those of the training split.
    """

    def __init__(self, labels: int, train: "OrderCounts | None" = None) -> None:
        self._labels = labels
        self._scaling: tuple[np.ndarray, np.ndarray] | None = train._scaling if train else None
        self.counts = np.zeros((0, 1 + labels, _ORDER_BINS), np.int64)
        self.infinite = self.large = self.present = 0

    def update(self, values: np.ndarray, _hashes: np.ndarray, rows: Rows) -> None:
        """Adds rows: float32 [rows] or [rows, n]."""
        values = values.reshape(len(values), -1)
        self.infinite += np.count_nonzero(np.isinf(values))
        self.large += np.count_nonzero(np.abs(values) >= LARGEST_EXACT)
        self.present += np.count_nonzero(~np.isnan(values))
        if not len(self.counts):
            self.counts = np.zeros((values.shape[1], *self.counts.shape[1:]), np.int64)
        for counts, bins in zip(self.counts, self._bins(values).T):
            counts[0] += np.bincount(bins, minlength=_ORDER_BINS)
            np.add.at(counts.reshape(-1), (1 + rows.labels) * _ORDER_BINS + bins[rows.positives], 1)

    def _bins(self, values: np.ndarray) -> np.ndarray:
        if self._scaling is None:
            finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
            known = ~np.isnan(finite)
            counts = np.maximum(known.sum(axis=0), 1)
            mean = np.where(known, finite, 0).sum(axis=0) / counts
            spread = np.sqrt(np.where(known, (finite - mean) ** 2, 0).sum(axis=0) / counts)
            self._scaling = mean, np.where(spread > 0, spread, 1)
        mean, spread = self._scaling
        with np.errstate(over="ignore"):
            bits = ((values.astype(np.float64) - mean) / spread).astype(np.float32).view(np.int32)
        size = bits & 0x7FFFFFFF
        bins = (np.where(bits < 0, -size, size) >> 20) + _ORDER_BINS // 2
        return np.where(np.isnan(values), 0, bins)

    def aucs(self) -> list[float]:
        """Returns the AUC of each label by the order of the numbers, up or down, of the element that tells it best."""
        return [_largest(map(self._auc, self.counts[:, 0], self.counts[:, i + 1])) for i in range(self._labels)]

    def _auc(self, rows: np.ndarray, positives: np.ndarray) -> float:
        upward = auc(rows - positives, positives)
        return max(upward, 1 - upward)

    def drift(self, train: "OrderCounts") -> float:
        """Returns the divergence from the training split, see `divergence`, of the element that is farthest from it."""
        return _largest(
            divergence(_fold(mine[0], theirs[0]), _fold(theirs[0], theirs[0]))
            for mine, theirs in zip(self.counts, train.counts)
        )


def _largest(values: Iterable[float]) -> float:
    """Returns the largest of values, NaN where there is none that is a number."""
    return max((value for value in values if not np.isnan(value)), default=float("nan"))


def _fold(counts: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Returns rows by missing and by quantile of the training split, with a cell above the last: int [cells]."""
    present = train[1:]
    middle = np.cumsum(present) - present / 2
    cells = 1 + (_QUANTILES * middle / max(present.sum(), 1)).astype(np.int64)
    return np.bincount(np.append(0, cells), counts, _QUANTILES + 2)


class CategoryCounts:
    """Rows of a hashed column by slots of its values, in two halves of the rows, and which values there were.

    A row of several values is scored by the highest rate of them in the other half of the rows so far, when it is added: one
    value can tell, and is not seen in the rates of the rest.

    Args:
      labels: Number of labels.
      train: Counts of the training split, for values that it does not have; None for the training split itself.
    """

    def __init__(self, labels: int, train: "CategoryCounts | None" = None) -> None:
        self._train = train
        self._cells = np.zeros((1 + labels, 2 * _SLOTS + 1), np.int64)  # the last one takes what fills lists up
        self._scored: np.ndarray | None = None  # rows of lists by score, all and the label's: [labels, 2, _RATE_BINS]
        self.seen = np.zeros(2**_SEEN_BITS, bool)
        self.present = self.unseen = 0

    @property
    def counts(self) -> np.ndarray:
        """Values in all, then those on rows where each label happened: int64 [1 + labels, halves, slots]."""
        return self._cells[:, :-1].reshape(len(self._cells), 2, _SLOTS)

    def update(self, values: np.ndarray, hashes: np.ndarray, rows: Rows) -> None:
        """Adds rows: int64 or bytes [rows] or [rows, n], and their fingerprints.

        Each value of a row counts; a row without any counts once, as missing.
        """
        values = values.reshape(len(values), -1)
        present = values != (MISSING_INT64 if values.dtype == np.int64 else MISSING_STRING)
        places = (hashes >> np.uint64(64 - _SEEN_BITS)).astype(np.int64).reshape(values.shape)
        halves = rows.halves[:, np.newaxis] * _SLOTS
        cells = np.where(present, 1 + (places >> _SEEN_BITS - _SLOT_BITS), 0) + halves
        if values.shape[1] > 1:
            empty = ~present.any(axis=1)
            cells[~present] = 2 * _SLOTS
            cells[empty, 0] = halves[empty, 0]
        self._cells[0] += np.bincount(cells.ravel(), minlength=2 * _SLOTS + 1)
        of_labels = (1 + rows.labels[:, np.newaxis]) * (2 * _SLOTS + 1) + cells[rows.positives]
        np.add.at(self._cells.reshape(-1), of_labels.ravel(), 1)
        if values.shape[1] > 1:
            self._score(cells, rows)
        seen = places[present]
        self.seen[seen] = True
        self.present += len(seen)
        if self._train:
            self.unseen += np.count_nonzero(~self._train.seen[seen])

    def _score(self, cells: np.ndarray, rows: Rows) -> None:
        if self._scored is None:
            self._scored = np.zeros((len(self._cells) - 1, 2, _RATE_BINS), np.int64)
        known, *labels = self.counts
        for i, (happened, scored) in enumerate(zip(labels, self._scored)):
            bins = _rates(known, happened).astype(np.float32).view(np.int32) >> 18
            scores = np.append(bins[::-1], 0)[cells].max(axis=1)
            scored[0] += np.bincount(scores, minlength=_RATE_BINS)
            scored[1] += np.bincount(scores[rows.positives[rows.labels == i]], minlength=_RATE_BINS)

    def aucs(self) -> list[float]:
        """Returns the AUC of each label by the rates of the values, those of one half scored on the other, and back."""
        if self._scored is not None:
            return [auc(every - happened, happened) for every, happened in self._scored]
        rows, *labels = self.counts
        return [
            float(np.mean([_auc_of_rates(rows, happened), _auc_of_rates(rows[::-1], happened[::-1])]))
            for happened in labels
        ]

    def drift(self, train: "CategoryCounts") -> float:
        """Returns the divergence from the training split, see `divergence`."""
        return divergence(self._folded(), train._folded())

    def _folded(self) -> np.ndarray:
        slots = np.arange(_SLOTS)
        cells = np.where(slots, 1 + slots % (_CELLS - 1), 0)
        return np.bincount(cells, self.counts[0].sum(axis=0), _CELLS)

    @property
    def unseen_share(self) -> float:
        """Share of the present values that the training split does not have; NaN where it has too many to tell.

        A value that is new is found where its bit is free, so those found are divided by the share of the free bits. Their
        number is binomial, and one of `ALIKE` values counts: 1 % free bits (4.8 million values of training) tell the share
        from 80,000 values on.
        """
        if not self._train or not self.present:
            return 0.0
        free = 1 - float(self._train.seen.mean())
        if ALIKE * (1 - free) > _UNTOLD**2 * free * self.present:
            return float("nan")
        return min(1.0, self.unseen / (free * self.present))


def _auc_of_rates(rows: np.ndarray, happened: np.ndarray) -> float:
    """Returns the AUC of a label on the second half of rows by the rates of the first one: int64 [halves, slots] each."""
    scored, told = rows[1], happened[1]
    order = np.argsort(_rates(rows, happened)[0], kind="stable")
    return auc((scored - told)[order], told[order])


def _rates(rows: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Returns the rates of slots in each half, with one row of the half's rate added: int64 [halves, slots] to float64."""
    rate = happened.sum(axis=1, keepdims=True) / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    return (happened + rate) / (rows + 1)


class RowSample:
    """Rows by their fingerprints: all, or when there are many those below a bound, so that all copies of a row are in."""

    def __init__(self) -> None:
        self._bound = 2**64
        self._rows, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._new: list[np.ndarray] = []  # sorted in together, as sorting is what takes time

    def update(self, rows: np.ndarray) -> None:
        """Adds rows by their fingerprints, uint64 [rows]."""
        self._new.append(rows[rows <= np.uint64(self._bound - 1)])
        if sum(map(len, self._new)) > _ROWS_KEPT:
            self._sort_in()

    def _sort_in(self) -> None:
        joined = np.concatenate([self._rows, *self._new])
        weights = np.ones(len(joined), np.int64)
        weights[: len(self._rows)] = self._counts
        self._new.clear()
        self._rows, places = np.unique(joined, return_inverse=True)
        self._counts = np.bincount(places, weights, len(self._rows)).astype(np.int64)
        while len(self._rows) > _ROWS_KEPT:
            self._keep_below(self._bound // 2)

    def _keep_below(self, bound: int) -> None:
        self._bound = bound
        kept = self._rows <= np.uint64(bound - 1)
        self._rows, self._counts = self._rows[kept], self._counts[kept]

    @property
    def repeated_share(self) -> float:
        """Share of the rows that are copies of a row before."""
        self._sort_in()
        return float(1 - len(self._rows) / max(self._counts.sum(), 1))

    def share_in(self, other: "RowSample") -> float:
        """Returns the share of the rows that another sample has too."""
        self._sort_in()
        other._sort_in()
        below = self._rows <= np.uint64(min(self._bound, other._bound) - 1)
        both = below & np.isin(self._rows, other._rows)
        return float(self._counts[both].sum() / max(self._counts[below].sum(), 1))


class DayCounts:
    """Rows a day, and how many of them each label happened on; days beyond the first 4,096 are not counted."""

    def __init__(self) -> None:
        self.days: dict[int, np.ndarray] = {}

    def update(self, days: np.ndarray, labels: np.ndarray) -> None:
        """Adds rows: int64 [rows], bool [labels, rows]."""
        for day in np.unique(days).tolist():
            mine = days == day
            counts = np.concatenate([[np.count_nonzero(mine)], labels[:, mine].sum(axis=1)])
            if day in self.days or len(self.days) < _MOST_DAYS:
                self.days[day] = self.days.get(day, 0) + counts


def row_fingerprints(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """Returns a hash of each row by the fingerprints of its columns [rows] or [rows, n]: uint64 [rows].

    It depends on the columns' order: each element of each has an odd factor of its own.
    """
    elements = [element for column in hashes for element in column.reshape(len(column), -1).T]
    factors = mix(np.arange(1, 1 + len(elements), dtype=np.uint64)) | np.uint64(1)
    return mix(sum((element * factor for element, factor in zip(elements[1:], factors[1:])), elements[0] * factors[0]))
