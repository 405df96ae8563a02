"""The figures against scikit-learn, a count over all pairs, and arithmetic by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from hm3_tf.metrics import RANGE, TargetCounts, auc, auc_error, bin_odds, figures, score_bins
from tests import reference

ROWS = 20_000


def log_pairs(p):
    p = np.asarray(p, np.float64)
    return np.stack([np.log(p), np.log1p(-p)], axis=-1)


def pairs_of_odds(odds):
    odds = np.asarray(odds, np.float64)
    return np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], axis=-1)


def counted(labels, pairs, **options) -> TargetCounts:
    counts = TargetCounts(**options)
    counts.update(labels, pairs)
    return counts


def result(labels, pairs):
    return counted(labels, pairs).result()


def rare_case(rows=ROWS, rate=0.001, seed=0):
    """Returns labels with a share `rate` of positives and log-odds down to -31, which know something of them."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(rows, bool)
    labels[generator.choice(rows, int(rows * rate), replace=False)] = True
    return labels, np.clip(generator.normal(-15, 5, rows) + 5 * labels, -31, 0)


def test_the_auc_of_five_million_rows_of_one_positive_in_a_thousand_is_within_its_bound_of_scikit_learns():
    generator = np.random.default_rng(0)
    p = np.exp(generator.uniform(math.log(1e-6), math.log(1e-2), 5_000_000))
    labels = generator.random(len(p)) < p * 0.001 / p.mean()
    figures = result(labels, log_pairs(p).astype(np.float32))
    assert figures["auc_error"] < 1e-5
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-6)


def test_sixteen_shards_add_up_to_the_whole():
    labels, odds = rare_case()
    whole, merged = counted(labels, pairs_of_odds(odds)), TargetCounts()
    for part in np.array_split(np.random.default_rng(1).permutation(ROWS), 16):
        merged.merge(counted(labels[part], pairs_of_odds(odds[part])))
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-12)


def test_batches_add_up_to_the_whole():
    labels, odds = rare_case()
    batches = TargetCounts()
    for part in np.array_split(np.arange(ROWS), 7):
        batches.update(labels[part], pairs_of_odds(odds[part]))
    np.testing.assert_array_equal(batches.counts, counted(labels, pairs_of_odds(odds)).counts)


@pytest.mark.parametrize("values", [1, 2, 3, 10])
def test_ties_count_half(values):
    generator = np.random.default_rng(values)
    labels, odds = generator.random(500) < 0.1, generator.integers(0, values, 500)
    expected = roc_auc_score(labels, odds)
    assert result(labels, pairs_of_odds(odds))["auc"] == pytest.approx(expected, abs=1e-12)
    assert reference.auc(labels, odds) == pytest.approx(expected, abs=1e-12)


cases = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30)


@settings(deadline=None, derandomize=True)
@given(cases.filter(lambda rows: len({label for label, _ in rows}) == 2))
def test_the_auc_is_the_share_of_pairs_in_order(rows):
    labels, odds = (np.array(column) for column in zip(*rows))
    counts = counted(labels, pairs_of_odds(odds), resolution=4).counts
    assert auc(counts) == pytest.approx(reference.auc(labels, odds), abs=1e-12)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 64]))
def test_the_auc_is_never_farther_off_than_its_bound(seed, resolution):
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 1, 60)
    labels = np.append([True, False], generator.random(58) < 0.4)
    counts = counted(labels, pairs_of_odds(odds), resolution=resolution).counts
    assert abs(auc(counts) - reference.auc(labels, odds)) <= auc_error(counts) + 1e-12


def test_the_bound_is_reached_by_the_worst_case():
    # One positive above one negative of the same bin: half a pair of one is lost.
    counts = counted([True, False], pairs_of_odds([0.4, 0.1]), resolution=1).counts
    assert (auc(counts), auc_error(counts)) == (0.5, 0.5)


def test_scores_beyond_the_range_share_the_outermost_bins():
    bins = score_bins(pairs_of_odds([-500, -RANGE - 1, RANGE + 1, 500]), 8)
    assert bins.tolist() == [0, 0, 2 * RANGE * 8 - 1, 2 * RANGE * 8 - 1]


def test_a_bin_lies_around_its_middle():
    middle = bin_odds(2 * RANGE * 8)
    assert score_bins(pairs_of_odds(middle), 8).tolist() == list(range(2 * RANGE * 8))
    assert middle[1] - middle[0] == pytest.approx(1 / 8) and middle[0] == pytest.approx(-RANGE + 1 / 16)


@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_the_auc_of_one_class_does_not_exist(labels):
    figures = result(np.array(labels, bool), pairs_of_odds(np.zeros(len(labels))))
    assert figures["auc"] is figures["auc_error"] is figures["normalized_entropy"] is None


def test_the_figures_by_hand():
    figures = result(np.array([True, False, False, False]), log_pairs([0.5, 0.25, 0.2, 0.25]))
    assert (figures["rows"], figures["positives"], figures["rate"], figures["auc"]) == (4, 1, 0.25, 1)
    assert figures["prediction"] == pytest.approx(0.3)  # (0.5 + 0.25 + 0.2 + 0.25) / 4
    assert figures["pcoc"] == pytest.approx(1.2)  # 0.3 / 0.25: predicted clicks over clicks
    # -(log 0.5 + log 0.75 + log 0.8 + log 0.75) / 4
    loss = (math.log(2) + 2 * math.log(4 / 3) + math.log(1.25)) / 4
    assert figures["log_loss"] == pytest.approx(loss)
    assert figures["normalized_entropy"] == pytest.approx(loss / (0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    # Four rows, twenty bins: a bin for each row but for the two of 0.25: (0.5 + 2 * 0.25 + 0.2) / 4
    assert figures["ece"] == pytest.approx(0.3, rel=1e-4)


def test_the_figures_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    p = generator.beta(0.5, 20, ROWS)
    labels = generator.random(ROWS) < p
    figures = result(labels, log_pairs(p))
    assert figures["log_loss"] == pytest.approx(log_loss(labels, p), rel=1e-9)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-6)
    assert figures["pr_auc"] == pytest.approx(average_precision_score(labels, p), rel=1e-3)
    assert figures["pcoc"] == pytest.approx(p.mean() / labels.mean(), rel=1e-12)
    assert figures["normalized_entropy"] == pytest.approx(
        log_loss(labels, p) / log_loss(labels, np.full(ROWS, labels.mean())), rel=1e-9
    )


def test_the_average_precision_of_tied_scores_is_scikit_learns():
    generator = np.random.default_rng(3)
    labels, odds = generator.random(5_000) < 0.05, generator.integers(-40, 40, 5_000) / 8
    expected = average_precision_score(labels, odds)
    assert result(labels, pairs_of_odds(odds))["pr_auc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_the_calibration_error_is_that_of_scikit_learns_quantile_bins(slope):
    generator = np.random.default_rng(4)
    odds = generator.normal(-3, 1, 40_000)
    labels = generator.random(len(odds)) < reference.sigmoid(odds)
    p = reference.sigmoid(slope * odds)
    observed, predicted = calibration_curve(labels, p, n_bins=20, strategy="quantile")  # of 2,000 rows each
    expected = np.abs(observed - predicted).mean()
    assert result(labels, log_pairs(p))["ece"] == pytest.approx(expected, rel=0.01)


def test_replicates_are_evaluated_as_one_by_one():
    generator = np.random.default_rng(5)
    counts = generator.integers(0, 5, (3, 2, 128)).astype(float)
    sums = generator.random((3, 2))
    together = figures(counts, sums)
    for i in range(3):
        alone = figures(counts[i], sums[i])
        for name, values in together.items():
            assert values[i] == pytest.approx(alone[name], rel=1e-12), name


def test_the_log_loss_knows_no_smallest_probability():
    # scikit-learn and Keras clip P; a purchase at log P = -80 costs 80 nats, and the others nothing that can be seen.
    labels = np.zeros(1_000, bool)
    labels[7] = True
    pairs = np.tile(np.array([-80.0, -math.exp(-80)], np.float32), (1_000, 1))
    assert result(labels, pairs)["log_loss"] == pytest.approx(80 / 1_000, rel=1e-12)


def test_float32_predictions_are_summed_in_float64():
    rows = 400_000
    pairs = np.tile(log_pairs([0.001]).astype(np.float32), (rows, 1))
    figures = result(np.arange(rows) % 1_000 == 0, pairs)
    assert figures["prediction"] == pytest.approx(float(np.exp(np.float64(pairs[0, 0]))), rel=1e-12)
    assert figures["pcoc"] == pytest.approx(1, rel=1e-6)


def test_labels_may_be_numbers():
    labels, pairs = np.array([True, False, False, False]), log_pairs([0.5, 0.25, 0.2, 0.25])
    assert result(labels.astype(np.float32), pairs) == result(labels, pairs)


def test_figures_that_do_not_exist_are_none():
    empty = result(np.zeros(0, bool), np.zeros((0, 2)))
    assert (empty.pop("rows"), empty.pop("positives")) == (0, 0)
    assert set(empty.values()) == {None}
    none_happened = result(np.zeros(3, bool), log_pairs([0.5, 0.5, 0.5]))
    assert none_happened["pcoc"] is None and none_happened["pr_auc"] is None
    assert none_happened["log_loss"] == pytest.approx(math.log(2)) and none_happened["rate"] == 0
