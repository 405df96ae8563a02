"""All that is counted over the rows of a split, for every target of a method, and the figures it gives."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hm3_tf.group_auc import ROWS_KEPT, GroupAucs, GroupedScores
from hm3_tf.intervals import BucketCounts, auc_variance, bootstrap_interval, normal_interval
from hm3_tf.metrics import RESOLUTION, TargetCounts, number

FEWEST = 30  # rows of either class, or groups, below which no interval is given
SLICE_RESOLUTION = 512
SLICE_ROWS_KEPT = 1 << 18


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a split with a model's predictions.

    Attributes:
      labels: bool [rows, levels].
      pairs: float32 [rows, levels + 1, 2], natural-log (P, 1 - P) of each level over impressions, then of the conversion
        given a click.
      groups: uint64 [rows], hashes of the groups; of the rows themselves in a log without groups.
      carried: {column: values [rows]}.
    """

    labels: np.ndarray
    pairs: np.ndarray
    groups: np.ndarray
    carried: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: np.ndarray) -> "Rows":
        """Returns some of the rows: bool [rows]."""
        carried = {name: values[chosen] for name, values in self.carried.items()}
        return Rows(self.labels[chosen], self.pairs[chosen], self.groups[chosen], carried)

    def target(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (groups, labels, pairs) of a target: a level's index, or that after the last for pcvr on clicked rows."""
        if i < self.labels.shape[1]:
            return self.groups, self.labels[:, i], self.pairs[:, i]
        clicked = self.labels[:, 0]
        return self.groups[clicked], self.labels[clicked, -1], self.pairs[clicked, i]


class Tally:
    """Counts of all targets: each level over impressions, and the conversion over clicked rows.

    Args:
      levels: Levels of the method; the first is the click, the last the conversion.
      grouped: Whether the log has groups, for GAUC.
      resolution: Bins a unit of log-odds.
      rows_kept: Most rows to keep for GAUC.
    """

    def __init__(
        self, levels: Sequence[str], grouped: bool, resolution: int = RESOLUTION, rows_kept: int = ROWS_KEPT
    ) -> None:
        self.levels = tuple(levels)
        targets = range(len(self.levels) + 1)
        self.counts = [TargetCounts(resolution) for _ in targets]
        self.buckets = [BucketCounts() for _ in targets]
        self.grouped = GroupedScores(len(targets), rows_kept) if grouped else None

    def update(self, rows: Rows) -> None:
        """Adds rows."""
        for i, (counts, buckets) in enumerate(zip(self.counts, self.buckets)):
            groups, labels, pairs = rows.target(i)
            counts.update(labels, pairs)
            buckets.update(groups, labels, pairs)
        if self.grouped:
            purchase = np.where(rows.labels[:, :1], rows.labels[:, -1:], -1)
            outcomes = np.concatenate([rows.labels, purchase], axis=1).astype(np.int8)
            odds = (rows.pairs[..., 0] - rows.pairs[..., 1]).astype(np.float32)
            self.grouped.update(rows.groups, outcomes, odds)

    def merge(self, other: "Tally") -> None:
        """Adds the rows of another, of the same method and resolution."""
        for mine, theirs in zip(self.arrays, other.arrays):
            mine += theirs
        if self.grouped and other.grouped:
            self.grouped.merge(other.grouped)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The counts and sums that add up, to be changed in place."""
        parts: list[TargetCounts | BucketCounts] = [*self.counts, *self.buckets]
        return [array for part in parts for array in (part.counts, part.sums)]

    def estimates(self) -> "list[Estimates]":
        """Returns the figures of each target: of the levels, then of pcvr."""
        groups: Sequence[GroupAucs | None] = self.grouped.aucs() if self.grouped else [None] * len(self.counts)
        return [Estimates(*parts) for parts in zip(self.counts, self.buckets, groups)]

    def result(self, estimates: "Sequence[Estimates] | None" = None) -> dict[str, Any]:
        """Returns the figures as `metrics.json` has them: `rows`, `pctr`, `pcvr`, `pctcvr`, `levels`.

        Args:
          estimates: Of `estimates`, where they are at hand.
        """
        return named(self.levels, [target.result() for target in estimates or self.estimates()])


class Estimates:
    """The figures of one target and their spread.

    Args:
      counts: The target's counts.
      buckets: The same in buckets of groups.
      groups: The AUCs within groups, or None in a log without groups.

    Attributes:
      plain: Figures without intervals, see `TargetCounts.result`.
      counts: int64 [2, bins].
      values: {figure: value}, None where it does not exist.
      too_small: Whether there are too few rows of a class, or too few groups, for intervals.
      replicates: {figure: float64 [replicates]} of those that a bootstrap gives an interval.
    """

    def __init__(self, counts: TargetCounts, buckets: BucketCounts, groups: GroupAucs | None) -> None:
        self._groups = groups
        self.plain = counts.result()
        self.counts = counts.counts
        self.values: dict[str, Any] = {name: self.plain[name] for name in FIGURES}
        smallest = min(self.plain["positives"], self.plain["rows"] - self.plain["positives"], buckets.filled)
        self.too_small = smallest < FEWEST
        self.replicates = {} if self.too_small else buckets.replicates()
        if groups:
            self.values |= {name: number(value) for name, value in groups.figures().items()}
            self.replicates |= groups.replicates() if groups.groups >= FEWEST else {}

    def result(self) -> dict[str, Any]:
        """Returns the figures with their 95 % intervals, `<figure>_interval`, None where there are too few rows or groups."""
        result = {**self.plain, **self.values}
        if self._groups:
            result |= {"gauc_groups": self._groups.groups, "gauc_share": self._groups.share}
        intervals: dict[str, Any] = dict.fromkeys(self.values)
        if not self.too_small:
            for name, replicates in self.replicates.items():
                if self.values[name] is not None:
                    intervals[name] = pair(bootstrap_interval(self.values[name], replicates))
            intervals["auc"] = pair(normal_interval(self.plain["auc"], auc_variance(self.counts)))
        return {
            **result,
            "too_small": self.too_small,
            **{f"{name}_interval": interval for name, interval in intervals.items()},
        }


FIGURES = ("auc", "pr_auc", "log_loss", "normalized_entropy", "pcoc", "ece")


def pair(interval: tuple[float, float]) -> list[float] | None:
    """Returns an interval as JSON has it: None where it does not exist."""
    return [float(end) for end in interval] if np.isfinite(interval).all() else None


def named(levels: Sequence[str], targets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what is known of the targets (the levels, then pcvr) under the names of `metrics.json`."""
    return {
        "rows": targets[0]["rows"],
        "pctr": dict(targets[0]),
        "pcvr": targets[-1],
        "pctcvr": dict(targets[len(levels) - 1]),
        "levels": dict(zip(levels, targets)),
    }
