"""Measures against enumeration, other libraries and cases whose answer is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data_pipeline.simulate import POSITIONS
from hm3_tf.experiment.measures import (
    EDGE_TRUTHS,
    Scored,
    auc,
    edge_measures,
    label_measures,
    measure,
    ranking_measures,
    soft_auc,
    truth_measures,
)

ROWS = 400 * POSITIONS


def logit(p):
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def random_truth(rng, rows=ROWS):
    """Returns true probabilities of a log in which HM3's graph holds."""
    edges = {name: rng.uniform(0.05, 0.6, rows) for name in ("y1", *EDGE_TRUTHS.values())}
    d_ma = edges["y2"] * edges["y3"] + (1 - edges["y2"]) * edges["y5"]
    pcvr = d_ma * edges["y4"] + (1 - d_ma) * edges["y6"]
    return edges, {"pctr": edges["y1"], "pcvr": pcvr, "pcvr_given_click": pcvr, "pctcvr": edges["y1"] * pcvr}


@pytest.fixture(scope="module")
def perfect():
    """A model that predicts the truth of every target and edge."""
    rng = np.random.default_rng(0)
    edges, truth = random_truth(rng)
    click, would_buy = rng.random(ROWS) < truth["pctr"], rng.random(ROWS) < truth["pcvr"]
    columns = {f"truth_{name}": p for name, p in {**edges, **truth}.items()}
    columns |= {
        "truth_do_purchase": would_buy.astype(np.int64),
        "slate": np.arange(ROWS) // POSITIONS,
        "position": np.arange(ROWS) % POSITIONS,
        "price": rng.uniform(1, 100, ROWS),
    }
    return Scored(
        {name: logit(truth[name]) for name in ("pctr", "pcvr", "pctcvr")},
        {edge: logit(edges[name]) for edge, name in EDGE_TRUTHS.items()},
        click,
        would_buy & click,
        rng.integers(50, size=ROWS),
        columns,
    )


def with_odds(scored, **odds):
    return Scored(
        {**scored.log_odds, **odds}, scored.edges, scored.click, scored.purchase, scored.groups, scored.columns
    )


def test_an_auc_of_labels_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(20, size=500) / 7, rng.random(500) < 0.2
    assert auc(scores, labels, ~labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_a_soft_auc_is_the_sum_over_all_pairs():
    rng = np.random.default_rng(2)
    scores, truth, weights = rng.integers(5, size=30), rng.random(30), rng.random(30)
    pairs = np.outer(weights * truth, weights * (1 - truth))
    wins = (scores[:, None] > scores) + (scores[:, None] == scores) / 2
    assert soft_auc(scores, truth, weights) == pytest.approx((pairs * wins).sum() / pairs.sum(), abs=1e-12)


def test_a_soft_auc_is_what_the_aucs_of_drawn_labels_are_about():
    rng = np.random.default_rng(3)
    truth = rng.random(20_000) ** 3
    scores = truth + rng.normal(0, 0.2, 20_000)
    drawn = [roc_auc_score(rng.random(20_000) < truth, scores) for _ in range(20)]
    assert soft_auc(scores, truth) == pytest.approx(np.mean(drawn), abs=3 * np.std(drawn) / 20**0.5)


def test_an_auc_without_a_pair_is_not_a_number():
    assert np.isnan(auc(np.array([1.0, 2.0]), np.zeros(2), np.ones(2)))


def test_labels_are_measured_on_the_rows_of_their_target(perfect):
    result = label_measures(perfect)
    clicked = perfect.click
    odds = perfect.log_odds
    assert result["pctr.auc"] == pytest.approx(roc_auc_score(clicked, odds["pctr"]))
    assert result["pcvr.auc"] == pytest.approx(roc_auc_score(perfect.purchase[clicked], odds["pcvr"][clicked]))
    assert result["pctcvr.auc"] == pytest.approx(roc_auc_score(perfect.purchase, odds["pctcvr"]))
    assert result["pcvr.pcoc"] == pytest.approx(perfect.truth("pcvr")[clicked].sum() / perfect.purchase.sum(), rel=1e-5)


def test_gauc_is_the_mean_over_users_weighted_by_rows(perfect):
    users, click, odds = perfect.groups, perfect.click, perfect.log_odds["pctr"]
    names = [user for user in np.unique(users) if 0 < click[users == user].mean() < 1]
    aucs = [roc_auc_score(click[users == user], odds[users == user]) for user in names]
    weights = [np.count_nonzero(users == user) for user in names]
    assert label_measures(perfect)["pctr.gauc"] == pytest.approx(np.average(aucs, weights=weights))


def test_the_truth_has_no_regret_and_no_bias(perfect):
    result = truth_measures(perfect)
    for name in ("pctr", "pctcvr", "pcvr", "pcvr_all", "pcvr_unclicked"):
        assert result[f"regret.{name}"] == pytest.approx(0, abs=1e-6)
    for rows in ("clicked", "unclicked"):
        assert result[f"bias.{rows}"] == pytest.approx(0, abs=1e-6)
        assert result[f"pcoc.{rows}"] == pytest.approx(1, abs=1e-5)


def test_no_prediction_beats_the_truth(perfect):
    rng = np.random.default_rng(4)
    noisy = {name: odds + rng.normal(0, 0.5, ROWS).astype(np.float32) for name, odds in perfect.log_odds.items()}
    best, other = truth_measures(perfect), truth_measures(with_odds(perfect, **noisy))
    for name in ("pctr", "pctcvr", "pcvr", "pcvr_all", "pcvr_unclicked"):
        assert other[f"regret.{name}"] > 0.01
    assert all(other[f"log_loss.{rows}"] > best[f"log_loss.{rows}"] for rows in ("clicked", "unclicked"))


def test_bias_is_the_mean_of_predicted_less_true_on_the_rows_it_names(perfect):
    truth = perfect.truth("pcvr")
    raised = np.where(perfect.click, truth, truth + 0.1)
    result = truth_measures(with_odds(perfect, pcvr=logit(raised)))
    assert result["bias.clicked"] == pytest.approx(0, abs=1e-6)
    assert result["bias.unclicked"] == pytest.approx(0.1, abs=1e-6)


def test_the_truth_on_clicked_rows_is_that_given_the_click(perfect):
    columns = {**perfect.columns, "truth_pcvr_given_click": perfect.truth("pcvr") / 2}
    halved = Scored(perfect.log_odds, perfect.edges, perfect.click, perfect.purchase, perfect.groups, columns)
    result = truth_measures(halved)
    assert result["pcoc.clicked"] == pytest.approx(2, rel=1e-5)
    assert result["pcoc.unclicked"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_slope_of_an_edge_is_the_factor_its_odds_need(perfect, scale):
    edges = {edge: odds / scale + 1 for edge, odds in perfect.edges.items()}
    scaled = Scored(perfect.log_odds, edges, perfect.click, perfect.purchase, perfect.groups, perfect.columns)
    result = edge_measures(scaled)
    assert set(result) == {f"slope.{edge}" for edge in EDGE_TRUTHS}
    assert list(result.values()) == pytest.approx([scale] * 5, rel=0.05)


def test_methods_with_other_edges_have_no_slopes(perfect):
    other = Scored(perfect.log_odds, {}, perfect.click, perfect.purchase, perfect.groups, perfect.columns)
    assert edge_measures(other) == {}


def test_a_ranking_by_the_truth_has_the_most_purchases_and_one_by_value_the_most_gmv(perfect):
    rng = np.random.default_rng(5)
    best = ranking_measures(perfect, position_effect=0.5)
    noisy = with_odds(perfect, pctcvr=rng.normal(size=ROWS).astype(np.float32))
    other = ranking_measures(noisy, position_effect=0.5)
    assert best["ranked_0.purchases"] > other["ranked_0.purchases"]
    assert best["ranked_0.cvr"] > other["ranked_0.cvr"]
    assert best["ranked_1.gmv"] > best["ranked_0.gmv"] > other["ranked_0.gmv"]


def test_a_ranking_by_hand(perfect):
    """One slate; where the position does not matter every order has the same purchases, else the first place counts."""
    rows = slice(POSITIONS)
    columns = {name: values[rows] for name, values in perfect.columns.items()}
    one = Scored(
        {name: odds[rows] for name, odds in perfect.log_odds.items()},
        {},
        perfect.click[rows],
        perfect.purchase[rows],
        None,
        columns,
    )
    same = ranking_measures(one, position_effect=0.0)
    assert same["ranked_0.purchases"] == pytest.approx(one.truth("pctcvr").sum())
    odds = np.log(one.truth("pctr") / (1 - one.truth("pctr"))) + 0.5 * np.log1p(np.arange(POSITIONS))
    order = np.argsort(-one.truth("pctcvr"))
    clicks = 1 / (1 + np.exp(-(odds[order] - 0.5 * np.log1p(np.arange(POSITIONS)))))
    purchases = clicks * one.truth("pcvr")[order]
    result = ranking_measures(one, position_effect=0.5)
    assert result["ranked_0.purchases"] == pytest.approx(purchases.sum(), rel=1e-6)
    assert result["ranked_0.cvr"] == pytest.approx(purchases.sum() / clicks.sum(), rel=1e-6)
    assert result["ranked_0.gmv"] == pytest.approx((purchases * columns["price"][order]).sum(), rel=1e-6)


def test_a_log_without_truths_is_measured_by_its_labels(perfect):
    plain = Scored(perfect.log_odds, perfect.edges, perfect.click, perfect.purchase, None, {})
    assert set(measure(plain)) == {
        f"{target}.{name}" for target in ("pctr", "pcvr", "pctcvr") for name in ("auc", "log_loss", "pcoc")
    }
