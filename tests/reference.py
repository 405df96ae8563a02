"""Oracles: slow, obvious, float64, and independent of the code under test (nothing of it is imported here).

A chain is a tuple of (name, gate). All 2^n outcome paths are listed, each gets its probability as a product over the
edges that it takes, and whatever is asked for is a sum over paths.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Chain = Sequence[tuple[str, bool]]
Pair = tuple[np.ndarray, np.ndarray]

_CLICK = ("click", True)
_D_MI, _D_MA, _D_ACTION, _PURCHASE = (("d_mi", False), ("d_ma", False), ("d_action", False), ("purchase", False))
PAPER_CHAINS: dict[str, tuple[tuple[str, Chain], ...]] = {
    "base": (("impression", (_CLICK,)), ("click", (_PURCHASE,))),
    "esmm": (("impression", (_CLICK, _PURCHASE)),),
    "esm2": (("impression", (_CLICK, _D_MA, _PURCHASE)),),
    "esm2_mi": (("impression", (_CLICK, _D_ACTION, _PURCHASE)),),
    "hm3": (("impression", (_CLICK, _D_MI, _D_MA, _PURCHASE)),),
    "hm3_r": (("impression", (_CLICK, _D_MA, _D_MI, _PURCHASE)),),
}
"""Each method of HM3's Table 3 as (root, chain) of each of its networks."""


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-logit)), exact in relative terms on both sides.

    >>> float(sigmoid(0.0)), float(sigmoid(-100.0)) == float(np.exp(-100.0))
    (0.5, True)
    """
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, np.float64)))


def path_edges(chain: Chain, outcomes: Sequence[int], root: str = "impression") -> list[tuple[str, int]] | None:
    """Returns the (edge, outcome) that a path takes, None where a level happens after a gate that did not.

    >>> path_edges((("click", True), ("wish", False), ("buy", False)), (1, 0, 1))
    [('click', 1), ('wish_given_click', 0), ('buy_given_no_wish', 1)]
    >>> path_edges((("click", True), ("wish", False), ("buy", False)), (0, 0, 0))
    [('click', 0)]
    >>> path_edges((("click", True), ("wish", False), ("buy", False)), (0, 0, 1)) is None
    True
    """
    taken: list[tuple[str, int]] = []
    before, open_ = "", True
    for (name, gate), outcome in zip(chain, outcomes):
        if not open_ and outcome:
            return None
        if open_:
            first = name if root == "impression" else f"{name}_given_{root}"
            taken.append((f"{name}_given_{before}" if before else first, outcome))
        open_ = open_ and (outcome == 1 or not gate)
        before = name if outcome else f"no_{name}"
    return taken


def edge_names(chain: Chain, root: str = "impression") -> set[str]:
    """Returns the names of all edges that some path takes."""
    return {edge for outcomes in _outcomes(chain) for edge, _ in path_edges(chain, outcomes, root) or ()}


def _outcomes(chain: Chain) -> Iterator[tuple[int, ...]]:
    return itertools.product((0, 1), repeat=len(chain))


def _paths(chain: Chain, logits: Mapping[str, np.ndarray], root: str) -> list[tuple[dict, dict, np.ndarray]]:
    """Returns ({level: outcome}, {edge: outcome}, probability [batch]) of every path that can happen."""
    names = [name for name, _ in chain]
    paths = []
    for outcomes in _outcomes(chain):
        edges = path_edges(chain, outcomes, root)
        if edges is not None:
            factors = [sigmoid(logits[e] if outcome else -np.asarray(logits[e], np.float64)) for e, outcome in edges]
            paths.append((dict(zip(names, outcomes)), dict(edges), np.prod(factors, axis=0)))
    return paths


def probabilities(
    chain: Chain, logits: Mapping[str, np.ndarray], given: str | None = None, root: str = "impression"
) -> dict[str, Pair]:
    """Returns {level: (P, 1 - P)} of the levels after `given`, on the condition that `given` happened.

    >>> chain = (("click", True), ("buy", False))
    >>> [float(p) for p in probabilities(chain, {"click": 0.0, "buy_given_click": 0.0})["buy"]]
    [0.25, 0.75]
    >>> [float(p) for p in probabilities(chain, {"click": 0.0, "buy_given_click": 0.0}, given="click")["buy"]]
    [0.5, 0.5]
    """
    names = [name for name, _ in chain]
    paths = [p for p in _paths(chain, logits, root) if given is None or p[0][given]]
    total = sum(probability for _, _, probability in paths)
    return {
        name: tuple(sum(p for levels, _, p in paths if levels[name] == outcome) / total for outcome in (1, 0))
        for name in names[0 if given is None else names.index(given) + 1 :]
    }


def gradients(
    chain: Chain, logits: Mapping[str, np.ndarray], level: str, root: str = "impression"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {edge: (d log P(level) / d logit, d log(1 - P(level)) / d logit)}.

    d log(path) / d logit is outcome - sigmoid(logit) on an edge that the path takes. The rarer outcome is averaged over
    its paths; the other follows from P + (1 - P) = 1, so that both are exact in relative terms.

    >>> [float(d) for d in gradients((("click", True),), {"click": 0.0}, "click")["click"]]
    [0.5, -0.5]
    """
    paths = _paths(chain, logits, root)
    p, q = probabilities(chain, logits, root=root)[level]
    result = {}
    for edge in edge_names(chain, root):
        terms = [(levels[level], w * (o[edge] - sigmoid(logits[edge]))) for levels, o, w in paths if edge in o]
        d_p, d_q = (sum((term for outcome, term in terms if outcome == side), np.zeros_like(p)) for side in (1, 0))
        d_p, d_q = np.where(p < q, d_p, -d_q), np.where(p < q, -d_p, d_q)
        result[edge] = (d_p / p, d_q / q)
    return result


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Returns the area under the ROC curve over all pairs, a tie counting one half.

    >>> auc([0, 1, 0, 1], [0.1, 0.2, 0.2, 0.9])  # pairs: win, tie, win, win
    0.875
    >>> auc([0, 1, 1], [7, 7, 7])
    0.5
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    positive, negative = scores[labels == 1][:, np.newaxis], scores[labels == 0][np.newaxis, :]
    return float(np.mean((positive > negative) + 0.5 * (positive == negative)))
