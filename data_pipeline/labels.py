"""Behavior labels from the raw label columns, and what happens to labels that break the hierarchy.

Works on NumPy arrays and on tensors alike: the converter and the reader cannot disagree on what a label is.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_, or_
from typing import Any

from data_pipeline.schema import Level, Schema
from hm3_tf.behavior_graph import IMPRESSION, BehaviorGraph
from hm3_tf.errors import ConfigError, did_you_mean

NESTING_POLICIES = ("coerce", "drop", "error")


def check_policy(policy: str, where: str) -> None:
    """Checks the name of a nesting policy.

    Args:
      policy: `coerce` (a level counts only where the gates before it happened), `drop` (such rows are left out) or
        `error`.
      where: Flag or config field that gave it, for the error.

    Raises:
      ConfigError: It is none of them.
    """
    if policy not in NESTING_POLICIES:
        raise ConfigError(
            f"{where}: expected a nesting policy of {NESTING_POLICIES}, got {policy!r}; "
            f"{did_you_mean(policy, NESTING_POLICIES)}"
        )


def raw_flags(levels: Sequence[Level], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where each level's own columns say that it happened.

    Args:
      levels: Levels of a schema.
      columns: {behavior column: numbers [rows]}; a missing value is not positive, so it reads as "did not happen".

    Returns:
      {level: bool [rows]}.
    """
    return {level.name: reduce(or_, [_flag(level, columns[name]) for name in level.any_of]) for level in levels}


def _flag(level: Level, column: Any) -> Any:
    """Returns where a column of a level says that it happened: bool [rows]."""
    return reduce(or_, [column == value for value in level.values]) if level.values else column > 0


def find_level(schema: Schema, name: str) -> Level:
    """Returns a level of a log.

    Raises:
      ConfigError: It has none of that name.
    """
    levels = {level.name: level for level in schema.levels}
    if name not in levels:
        raise ConfigError(
            f"the method: expected levels of the log, got {name!r}; {did_you_mean(name, levels)}; name the levels so in the "
            "schema, or use a method whose levels the log has"
        )
    return levels[name]


def reachable(levels: Sequence[Level], labels: Mapping[str, Any], name: str) -> Any:
    """Returns the rows on which a level could happen: where the gates before it did.

    Args:
      levels: Levels in order.
      labels: {level: bool [rows]}.
      name: Name of a level.

    Returns:
      bool [rows].
    """
    before = levels[: [level.name for level in levels].index(name)]
    everywhere = labels[name] | ~labels[name]
    return reduce(and_, [labels[level.name] for level in before if level.gate], everywhere)


def behavior_names(level: Level) -> tuple[str, ...]:
    """Returns the names of the labels of a level's behaviors, one a column: `d_mi.picture`."""
    return tuple(f"{level.name}.{column}" for column in level.any_of)


def split(level: Level, columns: Mapping[str, Any], label: Any) -> dict[str, Any]:
    """Returns the labels of the behaviors that make up a level.

    Args:
      level: The level.
      columns: {behavior column: numbers [rows]}.
      label: bool [rows], the level's label, which keeps the hierarchy; so do the results.

    Returns:
      {behavior, see `behavior_names`: bool [rows]}.
    """
    flags = [_flag(level, columns[column]) & label for column in level.any_of]
    return dict(zip(behavior_names(level), flags))


def nest(levels: Sequence[Level], flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns labels that keep the hierarchy, and where the flags broke it.

    Args:
      levels: Levels in order.
      flags: {level: bool [rows]} as logged.

    Returns:
      (labels, violations): {level: bool [rows]} true only where all gates before the level happened, and
      {"purchase without click": bool [rows]}, one entry for each level after a gate.
    """
    labels: dict[str, Any] = {}
    violations: dict[str, Any] = {}
    gate = None
    for level in levels:
        flag = flags[level.name]
        if gate is None:
            labels[level.name] = flag
        else:
            labels[level.name] = flag & labels[gate]
            violations[f"{level.name} without {gate}"] = flag & ~labels[gate]
        if level.gate:
            gate = level.name
    return labels, violations


def merge(labels: Mapping[str, Any], merged_levels: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Returns the labels with the levels that a method merges added.

    Args:
      labels: {level: bool [rows]}.
      merged_levels: {new level: levels it is any of}.

    Returns:
      {level: bool [rows]}.

    Raises:
      ConfigError: A merged level is not among the labels.
    """
    result = dict(labels)
    for name, parts in merged_levels.items():
        for part in parts:
            if part not in labels:
                raise ConfigError(
                    f"level {name!r}: expected the level {part!r} in the log; {did_you_mean(part, labels)}"
                )
        result[name] = reduce(or_, [labels[part] for part in parts])
    return result


def edge_rows(graph: BehaviorGraph, labels: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the rows that reach each edge of a chain, and whether they took it.

    Args:
      graph: The chain.
      labels: {level: bool [rows]} for its levels, and for its root where that is a level.

    Returns:
      {edge: (reached bool [rows], happened bool [rows])}.

    Raises:
      ConfigError: A level of the graph is not among the labels.
    """
    root = () if graph.root == IMPRESSION else (graph.root,)
    for level in (*root, *graph.levels):
        if level not in labels:
            raise ConfigError(
                f"the behavior graph: expected levels of the log, got {level!r}; {did_you_mean(level, labels)}; name "
                "the levels so in the schema, or use a method whose levels the log has"
            )
    first = labels[graph.levels[0]]
    reached = labels[root[0]] if root else first | ~first
    result = {}
    before = None
    for transition in graph.transitions:
        happened = labels[transition.level]
        if before is None:
            result[transition.edges[0]] = (reached, happened)
        else:
            sides = (reached & before, reached & ~before)
            result |= {edge: (side, happened) for edge, side in zip(transition.edges, sides)}
            reached = sides[0] if transition.follows_gate else reached
        before = happened
    return result
