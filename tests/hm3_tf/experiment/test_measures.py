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


@pytest.fixture(scope="module")
def selected(perfect):
    """Forty rows of a world in which clicked rows buy more than others like them, as an imperfect model predicts them."""
    rng, rows = np.random.default_rng(6), slice(40)
    click = np.arange(40) % 3 == 0
    given_click = perfect.truth("pcvr")[rows] * rng.uniform(1.1, 1.6, 40)
    columns = {name: values[rows] for name, values in perfect.columns.items()}
    columns |= {"truth_pcvr_given_click": given_click, "truth_pctcvr": perfect.truth("pctr")[rows] * given_click}
    odds = {name: values[rows] + rng.normal(0, 1, 40).astype(np.float32) for name, values in perfect.log_odds.items()}
    edges = {name: values[rows] for name, values in perfect.edges.items()}
    return Scored(odds, edges, click, click & (rng.random(40) < given_click), None, columns)


def pairwise(scores, positives, negatives):
    wins = (scores[:, None] > scores) + (scores[:, None] == scores) / 2
    return (np.outer(positives, negatives) * wins).sum() / np.outer(positives, negatives).sum()


def test_each_auc_in_expectation_is_over_the_labels_of_its_rows(selected):
    pctr, pcvr, given_click, pctcvr = map(selected.truth, ("pctr", "pcvr", "pcvr_given_click", "pctcvr"))
    given_none = (pcvr - pctr * given_click) / (1 - pctr)  # the law of total probability
    cases = {
        "pctr": ("pctr", pctr, 1 - pctr),
        "pctcvr": ("pctcvr", pctcvr, 1 - pctcvr),
        "pcvr": ("pcvr", pctr * given_click, pctr * (1 - given_click)),
        "pcvr_all": ("pcvr", pcvr, 1 - pcvr),
        "pcvr_unclicked": ("pcvr", (1 - pctr) * given_none, (1 - pctr) * (1 - given_none)),
    }
    best = {"pctr": pctr, "pctcvr": pctcvr, "pcvr": given_click, "pcvr_all": pcvr, "pcvr_unclicked": given_none}
    result = truth_measures(selected)
    for name, (target, positives, negatives) in cases.items():
        expected = pairwise(selected.log_odds[target], positives, negatives)
        assert result[f"soft_auc.{name}"] == pytest.approx(expected, abs=1e-9), name
        assert result[f"bayes_auc.{name}"] == pytest.approx(pairwise(best[name], positives, negatives), abs=1e-9), name
        assert result[f"regret.{name}"] == result[f"bayes_auc.{name}"] - result[f"soft_auc.{name}"], name


def test_each_mean_is_over_its_rows_against_their_truth(selected):
    pctr, pcvr, given_click, pctcvr = map(selected.truth, ("pctr", "pcvr", "pcvr_given_click", "pctcvr"))
    odds, click = selected.log_odds["pcvr"].astype(np.float64), selected.click
    p, would_buy = 1 / (1 + np.exp(-odds)), selected.columns["truth_do_purchase"] == 1
    result = truth_measures(selected)
    for name, rows, truth in (("clicked", click, given_click), ("unclicked", ~click, (pcvr - pctcvr) / (1 - pctr))):
        q, y = p[rows], truth[rows]
        assert result[f"bias.{name}"] == pytest.approx((q - y).mean())
        assert result[f"pcoc.{name}"] == pytest.approx(q.sum() / y.sum())
        assert result[f"log_loss.{name}"] == pytest.approx(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean())
    for name, rows in (("all", click | ~click), ("unclicked", ~click)):
        expected = roc_auc_score(would_buy[rows], odds[rows])
        assert result[f"counterfactual_auc.pcvr_{name}"] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.0, 2.0])
def test_the_slope_of_an_edge_is_the_factor_its_odds_need(perfect, scale):
    edges = {edge: odds / scale + 1 for edge, odds in perfect.edges.items()}
    scaled = Scored(perfect.log_odds, edges, perfect.click, perfect.purchase, perfect.groups, perfect.columns)
    result = edge_measures(scaled)
    assert set(result) == {f"{figure}.{edge}" for figure in ("slope", "shift", "excess") for edge in EDGE_TRUTHS}
    for edge in EDGE_TRUTHS:
        assert result[f"slope.{edge}"] == pytest.approx(scale, rel=1e-4)
        assert result[f"shift.{edge}"] == pytest.approx(-scale, rel=1e-4)
        assert result[f"excess.{edge}"] > 0.01


@pytest.mark.parametrize(
    "edge, reached", [("d_mi_given_click", "y1"), ("d_ma_given_d_mi", "y2"), ("purchase_given_d_ma", "d_ma")]
)
def test_an_edge_is_judged_on_the_rows_that_reach_it(perfect, edge, reached):
    """Rows that seldom reach the edge are predicted wrongly, those that do are right."""
    y2, y3, y5 = (perfect.truth(name) for name in ("y2", "y3", "y5"))
    chance = {"y1": perfect.truth("pctr"), "y2": y2, "d_ma": y2 * y3 + (1 - y2) * y5}[reached]
    rare, columns = chance < np.median(chance), dict(perfect.columns)
    truth = perfect.truth(EDGE_TRUTHS[edge])
    wrong = np.where(rare, logit(1 - truth), logit(truth)).astype(np.float32)
    found = edge_measures(Scored({}, {**perfect.edges, edge: wrong}, perfect.click, perfect.purchase, None, columns))
    plain = np.average(np.where(rare, np.logaddexp(0, wrong) - truth * wrong, 0) - np.where(rare, np.logaddexp(0, -wrong)
                       + truth * wrong, 0))  # fmt: skip
    assert 0 < found[f"excess.{edge}"] < 0.8 * plain
    assert edge_measures(perfect)[f"excess.{edge}"] == pytest.approx(0, abs=1e-6)


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
    by_value = np.argsort(-one.truth("pctcvr") * columns["price"])
    assert list(by_value) != list(order)
    clicks = 1 / (1 + np.exp(-(odds[by_value] - 0.5 * np.log1p(np.arange(POSITIONS)))))
    value = (clicks * one.truth("pcvr")[by_value] * columns["price"][by_value]).sum()
    assert result["ranked_1.gmv"] == pytest.approx(value, rel=1e-6)


def test_a_ranking_counts_the_purchases_of_clicked_rows(selected):
    result = ranking_measures(selected, position_effect=0.0)
    assert result["ranked_0.purchases"] == pytest.approx(selected.truth("pctcvr").reshape(-1, POSITIONS).sum(1).mean())


def test_where_positions_do_not_follow_from_the_truth_nothing_is_ranked(perfect):
    assert not any(name.startswith("ranked") for name in measure(perfect))
    assert "ranked_1.gmv" in measure(perfect, position_effect=0.5)


def test_a_log_without_truths_is_measured_by_its_labels(perfect):
    plain = Scored(perfect.log_odds, perfect.edges, perfect.click, perfect.purchase, None, {})
    assert set(measure(plain)) == {
        f"{target}.{name}" for target in ("pctr", "pcvr", "pctcvr") for name in ("auc", "log_loss", "pcoc")
    }
