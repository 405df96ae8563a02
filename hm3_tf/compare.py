"""The difference of two models over the same rows, with its interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hm3_tf.errors import ConfigError, DataError
from hm3_tf.intervals import JointCounts, bootstrap_interval, normal_interval
from hm3_tf.tally import Estimates, Rows, named, pair


class Comparison:
    """Counts two models' predictions of the same rows, for the targets that both have.

    Args:
      first: Levels of the first model.
      second: Levels of the second one.

    Raises:
      ConfigError: The models have another click or another conversion.
    """

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        if (first[0], first[-1]) != (second[0], second[-1]):
            raise ConfigError(
                f"comparison: expected a run with the click {first[0]!r} and the conversion {first[-1]!r}, got one with "
                f"{second[0]!r} and {second[-1]!r}; compare runs of the same two events"
            )
        self._levels = [level for level in first if level in second]
        self._places = [(first.index(level), second.index(level)) for level in self._levels]
        self._places.append((len(first), len(second)))
        self._joint = [JointCounts() for _ in self._places]

    def update(self, first: Rows, second: Rows) -> None:
        """Adds the same rows as each model predicts them.

        Raises:
          DataError: They are not the same: the clicks or the conversions differ.
        """
        events, others = (rows.labels[:, [0, -1]] for rows in (first, second))
        if not np.array_equal(events, others):
            raise DataError(
                f"comparison: expected the same clicks and conversions of both models, got {len(first):,} rows with "
                f"{events.sum(axis=0).tolist()} of them and {len(second):,} with {others.sum(axis=0).tolist()}: labels of a "
                "level that only one method has break the hierarchy; convert the log with --nesting=coerce"
            )
        for joint, (mine, theirs) in zip(self._joint, self._places):
            _, labels, pairs = first.target(mine)
            joint.update(labels, pairs, second.target(theirs)[2])

    def result(self, first: Sequence[Estimates], second: Sequence[Estimates]) -> dict[str, Any]:
        """Returns the figures of the first model less those of the second.

        Args:
          first: Of the first model's tally.
          second: Of the second one's, of the same rows in the same groups.

        Returns:
          As `Tally.result`, for the shared levels: each target with `rows`, `positives`, `too_small` and, for each figure,
          the difference and its 95 % interval, None where one does not exist or there are too few rows.
        """
        targets = [
            _difference(first[mine], second[theirs], joint) for joint, (mine, theirs) in zip(self._joint, self._places)
        ]
        return named(self._levels, targets)


def _difference(first: Estimates, second: Estimates, joint: JointCounts) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(first.values)
    intervals: dict[str, Any] = dict.fromkeys(first.values)
    for name in values:
        if first.values[name] is None or second.values[name] is None:
            continue
        values[name] = difference = first.values[name] - second.values[name]
        if first.too_small:
            continue
        if name == "auc":
            intervals[name] = pair(normal_interval(difference, joint.difference_variance()))
        elif name in first.replicates:
            gaps = first.replicates[name] - second.replicates[name]
            intervals[name] = pair(bootstrap_interval(difference, gaps))
    return {
        **{name: first.plain[name] for name in ("rows", "positives")},
        "too_small": first.too_small,
        **values,
        **{f"{name}_interval": interval for name, interval in intervals.items()},
    }
