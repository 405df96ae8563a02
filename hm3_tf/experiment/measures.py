"""What is measured of a model on a split: AUCs against labels and, on a simulated log, against the true probabilities.

Labels of rare events are noise: of two models that differ by 0.002 in the AUC of CVR, the labels of 300,000 impressions cannot
tell which is better. On a simulated log every pair of rows has a probability of being a positive and a negative, so an AUC can
be taken in expectation over the labels: the soft AUC. It is of the same scale, and its noise is that of training alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipeline.simulate import POSITIONS
from hm3_tf import metrics
from hm3_tf.calibration import logistic_line
from hm3_tf.group_auc import within_group_aucs

TRUTHS = ("truth_pctr", "truth_pcvr", "truth_pcvr_given_click", "truth_pctcvr", "truth_do_purchase")
SLATES = ("slate", "position", "price")
EDGE_TRUTHS = {  # {edge of HM3: its true probability}
    "d_mi_given_click": "y2",
    "d_ma_given_d_mi": "y3",
    "d_ma_given_no_d_mi": "y5",
    "purchase_given_d_ma": "y4",
    "purchase_given_no_d_ma": "y6",
}
PRICE_POWERS = (0, 1)  # k of the ranking by pctcvr * price^k: 0 for purchases, 1 for their value


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split as a model predicts it, in the order of the log.

    Attributes:
      log_odds: {`pctr`, `pcvr`, `pctcvr`: float32 [rows]}.
      edges: {edge or other tower: float32 logit [rows]}.
      click: bool [rows].
      purchase: bool [rows].
      groups: int64 [rows], numbers of the users from 0, or None in a log without groups.
      columns: {column of the log: values [rows]}: those of `TRUTHS` and `SLATES`, and the truths of edges, that it has.
    """

    log_odds: Mapping[str, np.ndarray]
    edges: Mapping[str, np.ndarray]
    click: np.ndarray
    purchase: np.ndarray
    groups: np.ndarray | None
    columns: Mapping[str, np.ndarray]

    def probability(self, target: str) -> np.ndarray:
        """Returns the predicted probability of a target, float64 [rows]."""
        return 1 / (1 + np.exp(-self.log_odds[target].astype(np.float64)))

    def truth(self, name: str) -> np.ndarray:
        """Returns the column `truth_` + name, float64 [rows]."""
        return self.columns[f"truth_{name}"].astype(np.float64)


def auc(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """Returns the share of the pairs of a positive and a negative in which the positive has the higher score.

    A row can be part of either: with labels the two are 1 and 0 or 0 and 1; with the probabilities p and 1 - p it is the soft
    AUC, sum of p_i (1 - p_j) over the pairs in order. Ties count half.

    >>> round(auc(np.array([0.0, 1.0]), np.array([0.1, 0.5]), np.array([0.9, 0.5])), 4)
    0.7381

    Args:
      scores: float [rows].
      positives: float [rows], weight of the row as a positive, >= 0.
      negatives: float [rows], its weight as a negative, >= 0.

    Returns:
      In [0, 1]; NaN where there is no pair.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    counts = [np.add.reduceat(weights[order].astype(np.float64), starts) for weights in (negatives, positives)]
    with np.errstate(invalid="ignore"):
        return float(metrics.auc(np.stack(counts)))


def soft_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    """Returns the AUC in expectation over labels drawn from the true probabilities.

    Args:
      scores: float [rows].
      truth: float [rows], true probability of a positive.
      weights: float [rows], true probability that the row is among those that count, or one for all.
    """
    return auc(scores, weights * truth, weights * (1 - truth))


def measure(scored: Scored, position_effect: float | None = None) -> dict[str, float]:
    """Returns all that the log allows to measure.

    Args:
      scored: The split as a model predicts it.
      position_effect: What the simulated world takes off the log-odds of a click, times log(1 + position); None in a world
        where the truth at another position does not follow from it.

    Returns:
      {measure: value}: those of `label_measures`, and on a simulated log those of `truth_measures`, `edge_measures` and
      `ranking_measures`.
    """
    result = label_measures(scored)
    if set(TRUTHS) <= set(scored.columns):
        result |= truth_measures(scored)
        result |= edge_measures(scored)
        result |= {} if position_effect is None else ranking_measures(scored, position_effect)
    return result


def label_measures(scored: Scored) -> dict[str, float]:
    """Returns what observed labels say, of pctr and pctcvr on all impressions and of pcvr on clicked ones.

    Returns:
      `<target>.auc`, `<target>.gauc` (within users, weighted by rows; in a log with groups), `<target>.log_loss` (nats a row)
      and `<target>.pcoc` (predicted over observed).
    """
    every = np.ones(len(scored.click), bool)
    labels = {
        "pctr": (scored.click, every),
        "pcvr": (scored.purchase, scored.click),
        "pctcvr": (scored.purchase, every),
    }
    result = {}
    for target, (label, among) in labels.items():
        odds, y = scored.log_odds[target][among], label[among]
        result[f"{target}.auc"] = auc(odds, y, ~y)
        result[f"{target}.log_loss"] = _cross_entropy(odds, y)
        result[f"{target}.pcoc"] = float(scored.probability(target)[among].sum() / max(y.sum(), 1))
        if scored.groups is not None:
            _, values, rows = within_group_aucs(scored.groups[among], y, odds)
            result[f"{target}.gauc"] = float(np.average(values, weights=rows)) if len(rows) else float("nan")
    return result


def _cross_entropy(odds: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean cross-entropy of true probabilities, or labels, from predicted log-odds, in nats."""
    odds = odds.astype(np.float64)
    return float(np.mean(np.logaddexp(0, odds) - truth * odds))


def truth_measures(scored: Scored) -> dict[str, float]:
    """Returns what the true probabilities of a simulated log say.

    pcvr is that of an impression had it been clicked. Where something unobserved drives both the click and the purchase it
    differs between rows that were clicked and rows that were not, and is compared with the truth of those that count.

    Returns:
      `soft_auc.<x>`, `bayes_auc.<x>` (that of the truth) and `regret.<x>` (the latter less the former) for x of `pctr`,
      `pctcvr`, `pcvr` (on clicked rows), `pcvr_all` and `pcvr_unclicked`; `counterfactual_auc.<x>` of the last two against
      labels drawn as if clicked;
      `bias.clicked` and `bias.unclicked`, mean of predicted less true pcvr; `pcoc.<rows>`, predicted over true pcvr, and
      `log_loss.<rows>`, in expectation over labels.
    """
    pctr, pcvr, given_click, pctcvr = (scored.truth(name) for name in ("pctr", "pcvr", "pcvr_given_click", "pctcvr"))
    given_none = (pcvr - pctcvr) / (1 - pctr)  # P(purchase if clicked | no click)
    cases: dict[str, tuple[str, np.ndarray, np.ndarray | float]] = {
        "pctr": ("pctr", pctr, 1.0),
        "pctcvr": ("pctcvr", pctcvr, 1.0),
        "pcvr": ("pcvr", given_click, pctr),
        "pcvr_all": ("pcvr", pcvr, 1.0),
        "pcvr_unclicked": ("pcvr", given_none, 1 - pctr),
    }
    result = {}
    for name, (target, truth, weights) in cases.items():
        result[f"soft_auc.{name}"] = value = soft_auc(scored.log_odds[target], truth, weights)
        result[f"bayes_auc.{name}"] = best = soft_auc(truth, truth, weights)
        result[f"regret.{name}"] = best - value
    predicted, odds = scored.probability("pcvr"), scored.log_odds["pcvr"]
    would_buy = scored.columns["truth_do_purchase"] > 0
    for name, rows in {"all": np.ones_like(scored.click), "unclicked": ~scored.click}.items():
        result[f"counterfactual_auc.pcvr_{name}"] = auc(odds[rows], would_buy[rows], ~would_buy[rows])
    for name, rows, truth in (("clicked", scored.click, given_click), ("unclicked", ~scored.click, given_none)):
        result[f"bias.{name}"] = float(np.mean(predicted[rows] - truth[rows]))
        result[f"pcoc.{name}"] = float(predicted[rows].sum() / truth[rows].sum())
        result[f"log_loss.{name}"] = _cross_entropy(odds[rows], truth[rows])
    return result


def edge_measures(scored: Scored) -> dict[str, float]:
    """Returns how well each tower of HM3 says the probability of its edge, where the log has the truth of it.

    Returns:
      `slope.<edge>` and `shift.<edge>`: what the tower's log-odds have to be multiplied by, and what added, to predict the edge
      best on the rows that reach it: 1 and 0 where the edge is known, anything where it is not identified; and `excess.<edge>`,
      the cross-entropy that it has above that of the truth, in nats a row. Empty for methods with other edges.
    """
    if not all(edge in scored.edges and f"truth_{name}" in scored.columns for edge, name in EDGE_TRUTHS.items()):
        return {}
    y1, y2, y3, y5 = (scored.truth(name) for name in ("pctr", "y2", "y3", "y5"))
    d_ma = y2 * y3 + (1 - y2) * y5
    reach = (y1, y1 * y2, y1 * (1 - y2), y1 * d_ma, y1 * (1 - d_ma))
    result: dict[str, float] = {}
    for (edge, name), weights in zip(EDGE_TRUTHS.items(), reach):
        logit, truth = scored.edges[edge].astype(np.float64), scored.truth(name)
        line = logistic_line(logit, weights * (1 - truth), weights * truth)
        best = np.log(truth) - np.log1p(-truth)
        losses = (np.logaddexp(0, odds) - truth * odds for odds in (logit, best))
        excess = np.subtract(*losses)
        result |= {f"slope.{edge}": line[0], f"shift.{edge}": line[1]}
        result[f"excess.{edge}"] = float(np.average(excess, weights=weights))
    return result


def ranking_measures(scored: Scored, position_effect: float) -> dict[str, float]:
    """Returns what is to be expected if each slate had been shown in the order of pctcvr * price^k (HM3, Table 5, is online).

    The true probability of a click at another position follows from the world's position effect.

    Args:
      scored: The split; its rows are whole slates.
      position_effect: See `measure`.

    Returns:
      `ranked_<k>.cvr`, purchases a click, `ranked_<k>.purchases` and `ranked_<k>.gmv`, a slate.
    """
    slates = {
        name: values.reshape(-1, POSITIONS).astype(np.float64)
        for name, values in {
            "pctr": scored.truth("pctr"),
            "pcvr": scored.truth("pcvr_given_click"),
            "price": scored.columns["price"],
            "position": scored.columns["position"],
            "log_pctcvr": -np.logaddexp(0, -scored.log_odds["pctcvr"].astype(np.float64)),
        }.items()
    }
    anywhere = np.log(slates["pctr"]) - np.log1p(-slates["pctr"]) + position_effect * np.log1p(slates["position"])
    result = {}
    for power in PRICE_POWERS:
        order = np.argsort(-(slates["log_pctcvr"] + power * np.log(slates["price"])), axis=1, kind="stable")
        odds, pcvr, price = (np.take_along_axis(v, order, 1) for v in (anywhere, slates["pcvr"], slates["price"]))
        clicks = 1 / (1 + np.exp(-odds + position_effect * np.log1p(np.arange(POSITIONS))))
        purchases = clicks * pcvr
        result[f"ranked_{power}.cvr"] = float(purchases.sum() / clicks.sum())
        result[f"ranked_{power}.purchases"] = float(purchases.sum(axis=1).mean())
        result[f"ranked_{power}.gmv"] = float((purchases * price).sum(axis=1).mean())
    return result


def joined(parts: Iterator[dict]) -> dict:
    """Returns nested dicts of arrays as one, their rows one after the other."""
    first, *others = parts
    if isinstance(first, dict):
        return {name: joined(part[name] for part in (first, *others)) for name in first}
    return np.concatenate([first, *others])
