"""GAUC: the mean AUC within a group, of all groups or of a sample of whole groups.

Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017: weighted by rows; unweighted beside.
"""

from collections.abc import Callable

import numpy as np

from hm3_tf.intervals import BUCKETS, bucket_of, bucket_weights

ROWS_KEPT = 1 << 22
_ABSENT = -1  # the outcome of a row that is not among a target's rows


def within_group_aucs(
    groups: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the AUC of each group that has both classes, exact by rank, ties count half.

    Args:
      groups: int64 [rows], numbers from 0 below 2**31.
      labels: bool [rows].
      scores: float32 [rows].

    Returns:
      (group int64, AUC float64, rows int64), [groups with both classes] each.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 is 0
    ordered = np.where(bits >> 31 != 0, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)  # ascend as the floats do
    keys = np.sort((groups.astype(np.uint64) << np.uint64(33)) | (ordered << np.uint64(1)) | labels.astype(np.uint64))
    positive, tie = (keys & np.uint64(1)).astype(np.int64), keys >> np.uint64(1)
    starts = np.flatnonzero(np.append(True, tie[1:] != tie[:-1])[: len(tie)])
    owner = (tie[starts] >> np.uint64(32)).astype(np.int64)
    positives = np.add.reduceat(positive, starts) if len(starts) else np.empty(0, np.int64)
    negatives = np.diff(np.append(starts, len(keys))) - positives
    total = [np.bincount(owner, counts) for counts in (positives, negatives)]
    before = np.concatenate([[0], np.cumsum(total[1])[:-1]])[owner] if len(owner) else 0
    beaten = np.cumsum(negatives) - negatives / 2 - before
    chosen = np.flatnonzero((total[0] > 0) & (total[1] > 0))
    wins = np.bincount(owner, positives * beaten)[chosen]
    return chosen, wins / (total[0] * total[1])[chosen], (total[0] + total[1])[chosen].astype(np.int64)


class GroupedScores:
    """The rows of the groups whose hash is below a limit, which falls as rows come, so that their number stays bounded.

    Up to `rows_kept` rows nothing is left out. Beyond, the sample is one of whole groups, the same in whatever order and
    in how many parts the rows came.

    Args:
      targets: Number of targets.
      rows_kept: Most rows to keep.
    """

    def __init__(self, targets: int, rows_kept: int = ROWS_KEPT) -> None:
        self._rows_kept = rows_kept
        self._limit = 1.0  # share of the hashes
        empty = (np.empty(0, np.uint64), np.empty((0, targets), np.int8), np.empty((0, targets), np.float32))
        self._parts: list[tuple[np.ndarray, ...]] = [empty]
        self._count = 0

    @property
    def share(self) -> float:
        """Share of the groups that are kept, in (0, 1]."""
        return self._limit

    @property
    def rows(self) -> tuple[np.ndarray, ...]:
        """Rows kept: groups uint64 [rows], outcomes int8 [rows, targets], scores float32 [rows, targets]."""
        if len(self._parts) > 1:
            self._parts = [tuple(np.concatenate(column) for column in zip(*self._parts))]
        return self._parts[0]

    def update(self, groups: np.ndarray, outcomes: np.ndarray, scores: np.ndarray) -> None:
        """Adds rows.

        Args:
          groups: uint64 [rows], hashed.
          outcomes: int8 [rows, targets]: 1 happened, 0 not, -1 the row is not among the target's.
          scores: float32 [rows, targets], log-odds.
        """
        self._parts.append((groups, outcomes, scores))
        self._count += len(groups)
        if self._limit < 1:
            self._parts[-1] = self._below(self._parts[-1])
            self._count += len(self._parts[-1][0]) - len(groups)
        while self._count > self._rows_kept:
            self._limit /= 2
            self._parts = [self._below(self.rows)]
            self._count = len(self.rows[0])

    def merge(self, other: "GroupedScores") -> None:
        """Adds the rows of another."""
        theirs, mine = other.rows, self.rows
        self._limit, self._parts, self._count = min(self._limit, other._limit), [], 0
        self.update(*(np.concatenate(columns) for columns in zip(mine, theirs)))

    def gather(self, gather_rows: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes the rows of all workers in place of this one's, on each of them: `gather_rows` puts their arrays together."""
        self._limit = float(gather_rows(np.array([self._limit])).min())
        self._parts = [self._below(self.rows)]
        while gather_rows(np.array([len(self.rows[0])])).sum() > self._rows_kept:
            self._limit /= 2
            self._parts = [self._below(self.rows)]
        self._parts = [tuple(gather_rows(column) for column in self.rows)]
        self._count = len(self.rows[0])

    def _below(self, rows: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        kept = rows[0] < np.uint64(max(int(self._limit * 2**64) - 1, 0))
        return tuple(column[kept] for column in rows)

    def aucs(self) -> "list[GroupAucs]":
        """Returns the AUCs within the groups, of each target."""
        groups, outcomes, scores = self.rows
        names, numbers = np.unique(groups, return_inverse=True)
        result = []
        for i in range(outcomes.shape[1]):
            among = outcomes[:, i] != _ABSENT
            found, values, rows = within_group_aucs(numbers[among], outcomes[among, i] > 0, scores[among, i])
            result.append(GroupAucs(bucket_of(names[found]), values, rows, self._limit))
        return result


class GroupAucs:
    """The AUCs within groups of one target, as sums of their buckets.

    Args:
      buckets: int64 [groups].
      values: float64 [groups].
      rows: int64 [groups].
      share: Share of the log's groups that they are a sample of.
    """

    def __init__(self, buckets: np.ndarray, values: np.ndarray, rows: np.ndarray, share: float) -> None:
        self.groups = len(values)
        self.share = share
        columns = (values * rows, rows, values, np.ones_like(values))
        self._sums = np.stack([np.bincount(buckets, column, BUCKETS) for column in columns], axis=1)

    def figures(self) -> dict[str, np.ndarray]:
        """Returns `gauc`, weighted by rows, and `gauc_unweighted`; not finite without a group of both classes."""
        return _means(self._sums.sum(axis=0))

    def replicates(self) -> dict[str, np.ndarray]:
        """Returns the same of the bootstrap, {figure: float64 [replicates]}."""
        return _means(bucket_weights() @ self._sums)


def _means(sums: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"gauc": sums[..., 0] / sums[..., 1], "gauc_unweighted": sums[..., 2] / sums[..., 3]}
