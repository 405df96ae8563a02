"""Counts, rates and moments of a split: `statistics.json`.

Streaming and constant in memory. The network takes from them the means and deviations of numeric columns and the base
rates at which its towers start; a person takes from them whether the log is what they think it is.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.schema import Column, Schema
from hm3_tf.behavior_graph import BehaviorGraph
from hm3_tf.errors import DataError

_SKETCH_BITS = 20
_SKETCH_SLOTS = 2**_SKETCH_BITS  # of the cardinality estimate; good to about 10 million distinct values


def mix(bits: np.ndarray) -> np.ndarray:
    """Returns uint64 [...] bits mixed by the finalizer of splitmix64; TensorFlow, in `hashing`, takes six times as long."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    return bits ^ bits >> np.uint64(31)


class _CategoryCounter:
    """Counts values and missing values; estimates distinct values by linear counting (Whang et al., 1990)."""

    def __init__(self) -> None:
        self._count = self._missing = 0
        self._seen = np.zeros(_SKETCH_SLOTS, bool)

    def __getstate__(self) -> tuple[int, int, np.ndarray]:
        return self._count, self._missing, np.packbits(self._seen)

    def __setstate__(self, state: tuple[int, int, np.ndarray]) -> None:
        self._count, self._missing, packed = state
        self._seen = np.unpackbits(packed).view(bool)

    def update(self, values: np.ndarray) -> None:
        if values.dtype == np.int64:
            present = values[values != MISSING_INT64] if np.any(values == MISSING_INT64) else values
        else:
            present = tf.strings.to_hash_bucket_fast(values[values != MISSING_STRING], 2**63 - 1).numpy()
        self._count += present.size
        self._missing += values.size - present.size
        self._seen[mix(present.view(np.uint64)) >> np.uint64(64 - _SKETCH_BITS)] = True

    def merge(self, other: "_CategoryCounter") -> None:
        self._count += other._count
        self._missing += other._missing
        self._seen |= other._seen

    def result(self) -> dict[str, Any]:
        free = max(1, _SKETCH_SLOTS - np.count_nonzero(self._seen))
        return {
            "count": self._count,
            "missing": self._missing,
            "cardinality": round(-_SKETCH_SLOTS * float(np.log(free / _SKETCH_SLOTS))),
        }


class _Moments:
    """Mean, deviation and range of each element, merged batch by batch (Chan, Golub and LeVeque, 1983)."""

    def __init__(self, width: int) -> None:
        self._count, self._missing = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._mean, self._m2 = np.zeros(width), np.zeros(width)
        self._min, self._max = np.full(width, np.inf), np.full(width, -np.inf)

    def update(self, values: np.ndarray) -> None:
        values = values.reshape(-1, len(self._count)).astype(np.float64)
        present = ~np.isnan(values)
        count = present.sum(axis=0)
        mean = np.where(present, values, 0).sum(axis=0) / np.maximum(count, 1)
        m2 = np.where(present, (values - mean) ** 2, 0).sum(axis=0)
        least = np.where(present, values, np.inf).min(axis=0, initial=np.inf)
        most = np.where(present, values, -np.inf).max(axis=0, initial=-np.inf)
        self._add(count, len(values) - count, mean, m2, least, most)

    def merge(self, other: "_Moments") -> None:
        self._add(other._count, other._missing, other._mean, other._m2, other._min, other._max)

    def _add(self, count: Any, missing: Any, mean: Any, m2: Any, least: Any, most: Any) -> None:
        total = np.maximum(self._count + count, 1)
        shift = mean - self._mean
        self._m2 += m2 + shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._min = np.minimum(self._min, least)
        self._max = np.maximum(self._max, most)
        self._count += count
        self._missing += missing

    def result(self) -> dict[str, Any]:
        std = np.sqrt(self._m2 / np.maximum(self._count, 1))
        known = self._count > 0
        return {
            "count": int(self._count.sum()),
            "missing": int(self._missing.sum()),
            "mean": self._mean.tolist(),
            "std": std.tolist(),
            "min": np.where(known, self._min, 0).tolist(),
            "max": np.where(known, self._max, 0).tolist(),
        }


class StatisticsBuilder:
    """Collects the statistics of a split from batches of raw columns.

    Args:
      schema: The log's schema. Input, group and weight columns are counted; truth and ignored ones are not.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._columns: dict[str, Any] = {
            column.name: _Moments(column.length or 1) if column.dtype == "float" else _CategoryCounter()
            for column in schema.columns
            if column.is_input or column.role in ("group", "weight")
        }
        self._several = [level for level in schema.levels if len(level.any_of) > 1]
        self._together = {level.name: np.zeros((len(level.any_of),) * 2, np.int64) for level in self._several}
        self._patterns: Counter[int] = Counter()
        self._violations: Counter[str] = Counter()

    def add_rows(self, columns: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> None:
        """Adds rows.

        Args:
          columns: {column: values}; numbers [rows], vectors [rows, n], values of variable-length columns flattened in any
            way (padding is missing values). Missing values are as `records` writes them.
          labels: {level: bool [rows]}.
        """
        code = sum(labels[level.name].astype(np.int64) << i for i, level in enumerate(self._schema.levels))
        values, counts = np.unique(code, return_counts=True)
        self._patterns.update(dict(zip(values.tolist(), counts.tolist())))
        for level in self._several:
            behaviors = np.stack(list(label_rules.split(level, columns, labels[level.name]).values())).astype(
                np.float64
            )
            self._together[level.name] += np.rint(behaviors @ behaviors.T).astype(np.int64)
        for name, counter in self._columns.items():
            counter.update(columns[name])

    def add_violations(self, violations: Mapping[str, np.ndarray]) -> None:
        """Counts labels that broke the hierarchy, {kind: bool [rows]}."""
        for kind, where in violations.items():
            self._violations[kind] += int(np.count_nonzero(where))

    def merge(self, other: "StatisticsBuilder") -> None:
        """Adds the rows and violations that another builder of the same schema has counted."""
        self._patterns.update(other._patterns)
        self._violations.update(other._violations)
        for name, counts in other._together.items():
            self._together[name] += counts
        for name, counter in other._columns.items():
            self._columns[name].merge(counter)

    def result(self) -> "SplitStatistics":
        """Returns the statistics of the batches so far."""
        names = tuple(level.name for level in self._schema.levels)
        patterns = {
            "".join(str(code >> i & 1) for i in range(len(names))): n for code, n in sorted(self._patterns.items())
        }
        columns = {name: counter.result() for name, counter in self._columns.items()}
        together = {name: counts.tolist() for name, counts in self._together.items()}
        return SplitStatistics(names, patterns, dict(self._violations), columns, together)


@dataclasses.dataclass(frozen=True)
class CoOccurrences:
    """How often the behaviors of a level happen together.

    Attributes:
      names: Names of the behaviors' labels.
      counts: int64 [behaviors, behaviors], rows on which both happened, after the gates before the level.
      rows: Rows on which these gates happened.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    rows: int

    def rates(self) -> dict[str, float]:
        """Returns {behavior: its rate in (0, 1) after the gates}, smoothed by half a positive and half a negative row."""
        return {name: float((n + 0.5) / (self.rows + 1)) for name, n in zip(self.names, self.counts.diagonal())}


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """The statistics of a split.

    Attributes:
      level_names: Levels in the schema's order.
      label_patterns: Rows by which levels happened: {"1010": rows}, a digit a level.
      violations: Labels that broke the hierarchy, by kind: {"purchase without click": rows}.
      columns: {column: figures}: count, missing, and cardinality, or mean, std, min and max of each element.
      together: {level of several behaviors: [behaviors][behaviors] rows on which both happened, in the schema's order}.
    """

    level_names: tuple[str, ...]
    label_patterns: Mapping[str, int]
    violations: Mapping[str, int]
    columns: Mapping[str, Mapping[str, Any]]
    together: Mapping[str, Sequence[Sequence[int]]] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of impressions."""
        return sum(self.label_patterns.values())

    def _labels(self, merged_levels: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        digits = [[digit == "1" for digit in pattern] for pattern in self.label_patterns]
        patterns = np.array(digits, bool).reshape(-1, len(self.level_names))
        labels = {name: patterns[:, i] for i, name in enumerate(self.level_names)}
        return label_rules.merge(labels, merged_levels), np.array(list(self.label_patterns.values()), np.int64)

    def rates(self) -> dict[str, float]:
        """Returns the share of impressions on which each level happened."""
        labels, rows = self._labels({})
        return {name: float(rows[label].sum() / rows.sum()) for name, label in labels.items()}

    def edge_rates(
        self, graph: BehaviorGraph, merged_levels: Mapping[str, tuple[str, ...]] | None = None
    ) -> dict[str, float]:
        """Returns the rate of each edge on the rows that reach it, smoothed by half a positive and half a negative row.

        Args:
          graph: The chain.
          merged_levels: Levels that are the union of levels of the log.

        Returns:
          {edge: rate in (0, 1)}.

        Raises:
          ConfigError: A level of the graph is not in the log.
        """
        labels, rows = self._labels(merged_levels or {})
        return {
            edge: float((rows[reached & happened].sum() + 0.5) / (rows[reached].sum() + 1))
            for edge, (reached, happened) in label_rules.edge_rows(graph, labels).items()
        }

    def co_occurrences(self, schema: Schema, level: str) -> "CoOccurrences":
        """Returns how often the behaviors of a level happen together.

        Args:
          schema: Schema of the log.
          level: Name of a level.

        Raises:
          ConfigError: The log has no such level.
          DataError: The statistics are of a conversion that did not count them.
        """
        names = label_rules.behavior_names(label_rules.find_level(schema, level))
        labels, rows = self._labels({})
        if self.rows and len(names) > 1 and level not in self.together:
            raise DataError(
                f"statistics.json: expected the rows on which behaviors of level {level!r} happened together, found none; "
                "convert the log again"
            )
        counts = np.array(self.together.get(level, np.zeros((len(names),) * 2)), np.int64)
        if len(names) == 1:
            counts[:] = rows[labels[level]].sum()
        return CoOccurrences(names, counts, int(rows[label_rules.reachable(schema.levels, labels, level)].sum()))

    def as_dict(self) -> dict[str, Any]:
        """Returns what `statistics.json` holds of the split."""
        return {
            "rows": self.rows,
            "levels": self.rates() if self.rows else {},
            "label_patterns": dict(self.label_patterns),
            "violations": dict(self.violations),
            "together": {level: [list(row) for row in counts] for level, counts in self.together.items()},
            "columns": {name: dict(figures) for name, figures in self.columns.items()},
        }


def no_statistics(schema: Schema) -> SplitStatistics:
    """Returns the statistics of no rows: numeric columns have mean 0 and deviation 1, every rate is 1/2."""
    columns = {
        column.name: {"mean": [0.0] * (column.length or 1), "std": [1.0] * (column.length or 1)}
        for column in schema.inputs
        if column.dtype == "float"
    }
    return SplitStatistics(tuple(level.name for level in schema.levels), {}, {}, columns)


def to_json(splits: Mapping[str, SplitStatistics]) -> str:
    """Returns `statistics.json` of the splits."""
    return json.dumps({name: split.as_dict() for name, split in splits.items()}, indent=1)


def from_json(text: str, levels: Sequence[str], path: str) -> dict[str, SplitStatistics]:
    """Returns the splits of a `statistics.json`.

    Args:
      text: The file's text.
      levels: Names of the schema's levels.
      path: Its path, for errors.

    Returns:
      {split: statistics}.

    Raises:
      DataError: The text is not what `to_json` writes for these levels.
    """
    try:
        data = json.loads(text)
        splits = {
            name: SplitStatistics(
                tuple(levels), split["label_patterns"], split["violations"], split["columns"], split.get("together", {})
            )
            for name, split in data.items()
        }
        widths = {len(pattern) for split in splits.values() for pattern in split.label_patterns}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected the statistics of each split, got {error!r}; convert the log again"
        ) from error
    if widths - {len(levels)}:
        raise DataError(
            f"{path}: expected label patterns of {len(levels)} levels {tuple(levels)}; convert the log again"
        )
    return splits


def numeric_moments(column: Column, statistics: SplitStatistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (means, deviations) of a numeric column, one an element.

    Args:
      column: A column of dtype `float`.
      statistics: Statistics of the training split.

    Returns:
      Two tuples of the column's width.

    Raises:
      DataError: The statistics do not have the column.
    """
    figures = statistics.columns.get(column.name)
    if figures is None or "mean" not in figures:
        raise DataError(
            f"statistics.json: expected the mean and deviation of column {column.name!r}, found none; convert the log again"
        )
    return tuple(figures["mean"]), tuple(figures["std"])
