"""The probabilities of a behavior graph from its towers, in log space.

Purchases are 0.1 % of impressions: probabilities are never clipped, and log(1 - P) is carried beside log P.
"""

from collections.abc import Mapping

import tensorflow as tf

from hm3_tf.behavior_graph import BehaviorGraph
from hm3_tf.errors import did_you_mean

Pair = tuple[tf.Tensor, tf.Tensor]  # (log P, log(1 - P)), float32 [batch] each


def _log_bernoulli(logit: tf.Tensor) -> Pair:
    return tf.math.log_sigmoid(logit), tf.math.log_sigmoid(-logit)


def log_bernoulli(logit: tf.Tensor) -> tf.Tensor:
    """Returns (log P, log(1 - P)) of the event with these log-odds.

    Args:
      logit: float32 [batch], unbounded.

    Returns:
      float32 [batch, 2], natural logarithms.
    """
    return tf.stack(_log_bernoulli(logit), axis=-1)


def _ordered(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns (first < second, the smaller, the larger); unlike `tf.minimum` with one gradient at ties, not two."""
    less = first < second
    return less, tf.where(less, first, second), tf.where(less, second, first)


def _log_add(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns log(exp(first) + exp(second)), [batch]."""
    _, smaller, larger = _ordered(first, second)
    return larger + tf.math.softplus(smaller - larger)


def _normalize(log_p: tf.Tensor, log_not_p: tf.Tensor) -> Pair:
    """Returns the pair, the larger recomputed from the smaller, which alone is exact in relative terms."""
    rare, smaller, _ = _ordered(log_p, log_not_p)
    larger = tf.math.log1p(-tf.exp(smaller))
    return tf.where(rare, smaller, larger), tf.where(rare, larger, smaller)


def _given_gate(gate: Pair, conditional: Pair) -> Pair:
    return _normalize(gate[0] + conditional[0], _log_add(gate[1], gate[0] + conditional[1]))


def given_gate(gate: tf.Tensor, conditional: tf.Tensor) -> tf.Tensor:
    """Returns (log P, log(1 - P)) of an event that needs a gate to have happened.

    Args:
      gate: float32 [batch, 2], (log P, log(1 - P)) of the gate.
      conditional: float32 [batch, 2], likewise of the event given the gate.

    Returns:
      float32 [batch, 2], each <= 0.
    """
    return tf.stack(_given_gate(tf.unstack(gate, axis=-1), tf.unstack(conditional, axis=-1)), axis=-1)


def _logits(edges: tuple[str, ...], edge_logits: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
    for edge in edges:
        if edge not in edge_logits:
            raise ValueError(f"expected a logit for edge {edge!r}, got none; {did_you_mean(edge, edge_logits)}")
    return [edge_logits[edge] for edge in edges]


def log_probs(
    graph: BehaviorGraph, edge_logits: Mapping[str, tf.Tensor], given: str | None = None
) -> dict[str, tf.Tensor]:
    """Returns the log-probability of every level of `graph` after `given`.

    Forward recursion of the chain in log space (HM3, Eq. 1-4; docs/paper_map.md). Carries log(1 - P) beside log P, so
    no epsilon is needed. Within the levels since the last gate the recursion runs on probabilities given that gate.

    >>> from hm3_tf.methods import ESMM
    >>> logits = {edge: tf.zeros(1) for edge in ESMM.graph.edges}  # both towers say 1/2
    >>> tf.exp(log_probs(ESMM.graph, logits)["purchase"]).numpy().round(4)
    array([[0.25, 0.75]], dtype=float32)

    Args:
      graph: The behavior chain; its `edges` name the logits.
      edge_logits: {edge name: float32 [batch]}, unbounded.
      given: Level to condition on: the recursion starts where it happened. Default the graph's root.

    Returns:
      {level: float32 [batch, 2]}, natural-log (P, 1 - P), each <= 0, for the levels after `given`.

    Raises:
      ValueError: An edge has no logit, or `given` is not a level.
    """
    start = 0 if given is None or given == graph.root else graph.index(given) + 1
    result: dict[str, Pair] = {}
    gate: Pair | None = None  # of the last gate; `state` is that of the last level given this gate
    previous = ""
    for transition in graph.transitions[start:]:
        edges = [_log_bernoulli(x) for x in _logits(transition.edges if result else transition.edges[:1], edge_logits)]
        if transition.follows_gate and result:
            gate = result[previous]
        if len(edges) == 1:
            state = edges[0]
        else:
            log_p, log_not_p = (_log_add(state[0] + after, state[1] + after_none) for after, after_none in zip(*edges))
            state = log_p, log_not_p
        result[transition.level] = _normalize(*state) if gate is None else _given_gate(gate, state)
        previous = transition.level
    return {level: tf.stack(pair, axis=-1) for level, pair in result.items()}
