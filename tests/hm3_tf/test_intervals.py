"""Intervals: their coverage of a known truth, the paired test under no difference, and brute force over rows."""

from statistics import NormalDist

import numpy as np
import pytest

from hm3_tf.group_auc import GroupedScores
from hm3_tf.intervals import (
    BucketCounts,
    JointCounts,
    auc_variance,
    bootstrap_interval,
    normal_interval,
)
from hm3_tf.tally import Estimates
from tests.hm3_tf.test_metrics import counted, pairs_of_odds
from tests.reference import auc, sigmoid

SETS = 1_000
TRUTH = NormalDist().cdf(2**-0.5)  # AUC of positives N(1, 1) over negatives N(0, 1)


def sampled(generator, noise=0.0, positives=100, negatives=400):
    """Returns labels and log-odds of one set, and two scores that add independent noise to them."""
    labels = np.repeat([True, False], [positives, negatives])
    odds = generator.normal(labels.astype(float), 1)
    return labels, odds, *(odds + generator.normal(0, noise, len(odds)) for _ in range(2))


def delong(labels, odds):
    """DeLong's placements by brute force: (of positives, of negatives)."""
    wins = (odds[labels][:, None] > odds[~labels]) + 0.5 * (odds[labels][:, None] == odds[~labels])
    return wins.mean(axis=1), wins.mean(axis=0)


def test_the_variance_of_an_auc_is_that_of_brute_force():
    labels, odds, *_ = sampled(np.random.default_rng(0))
    odds = np.round(odds * 8) / 8 + 1 / 16  # ties, each value in the middle of a bin
    positives, negatives = delong(labels, odds)
    expected = positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives)
    assert auc_variance(counted(labels, pairs_of_odds(odds)).counts) == pytest.approx(expected, rel=1e-9)


def test_the_variance_of_a_paired_difference_is_that_of_brute_force():
    labels, _, first, second = sampled(np.random.default_rng(1), noise=0.5)
    first, second = (np.round(odds * 8) / 8 + 1 / 16 for odds in (first, second))
    gaps = [a - b for a, b in zip(delong(labels, first), delong(labels, second))]
    expected = sum(gap.var(ddof=1) / len(gap) for gap in gaps)
    joint = JointCounts()
    joint.update(labels, pairs_of_odds(first), pairs_of_odds(second))
    assert joint.difference_variance() == pytest.approx(expected, rel=1e-9)


def test_delongs_interval_covers_the_truth_in_95_percent_of_sets():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(SETS):
        labels, odds, *_ = sampled(generator)
        counts = counted(labels, pairs_of_odds(odds), resolution=512).counts
        low, high = normal_interval(auc(labels, odds), auc_variance(counts))
        covered += low <= TRUTH <= high
    assert 0.93 <= covered / SETS <= 0.97


def test_the_paired_test_rejects_no_difference_in_5_percent_of_sets():
    generator = np.random.default_rng(3)
    alarms = 0
    for _ in range(SETS):
        labels, _, first, second = sampled(generator, noise=0.5)
        joint = JointCounts()
        joint.update(labels, pairs_of_odds(first), pairs_of_odds(second))
        low, high = normal_interval(auc(labels, first) - auc(labels, second), joint.difference_variance())
        alarms += not low <= 0 <= high
    assert 0.04 <= alarms / SETS <= 0.06


def test_a_model_does_not_differ_from_itself():
    labels, odds, *_ = sampled(np.random.default_rng(4))
    joint = JointCounts()
    joint.update(labels, pairs_of_odds(odds), pairs_of_odds(odds))
    assert joint.difference_variance() == 0


def test_joint_counts_of_shards_add_up():
    labels, _, first, second = sampled(np.random.default_rng(5), noise=0.5)
    whole, merged = JointCounts(), JointCounts()
    whole.update(labels, pairs_of_odds(first), pairs_of_odds(second))
    for part in np.array_split(np.arange(len(labels)), 16):
        shard = JointCounts()
        shard.update(labels[part], pairs_of_odds(first[part]), pairs_of_odds(second[part]))
        merged.merge(shard)
    assert merged.difference_variance() == pytest.approx(whole.difference_variance(), rel=1e-12)


def clustered(generator, users=400, rows=10):
    """Returns (groups, labels, odds) of users who differ in ways that the model does not see."""
    groups = np.repeat(generator.integers(0, 2**63, users).astype(np.uint64), rows)
    taste = np.repeat(generator.normal(0, 1, users), rows)
    odds = generator.normal(-1, 1, users * rows)
    return groups, generator.random(len(odds)) < sigmoid(odds + taste), odds


def test_the_bootstrap_over_users_covers_the_figures_though_rows_are_dependent():
    generator = np.random.default_rng(6)
    labels, odds = clustered(generator, users=200_000)[1:]
    truth = counted(labels, pairs_of_odds(odds)).result()
    covered = dict.fromkeys(("log_loss", "normalized_entropy", "pcoc", "pr_auc"), 0)
    sets = 200
    for _ in range(sets):
        groups, labels, odds = clustered(generator)
        buckets = BucketCounts()
        buckets.update(groups, labels, pairs_of_odds(odds))
        value, replicates = counted(labels, pairs_of_odds(odds), resolution=512).result(), buckets.replicates()
        for name in covered:
            low, high = bootstrap_interval(value[name], replicates[name])
            covered[name] += low <= truth[name] <= high
    assert all(0.9 <= count / sets <= 0.99 for count in covered.values()), covered


def test_buckets_add_up():
    groups, labels, odds = clustered(np.random.default_rng(7))
    whole, merged = BucketCounts(), BucketCounts()
    whole.update(groups, labels, pairs_of_odds(odds))
    for part in np.array_split(np.arange(len(labels)), 16):
        shard = BucketCounts()
        shard.update(groups[part], labels[part], pairs_of_odds(odds[part]))
        merged.merge(shard)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-12)


def test_a_bucket_holds_whole_groups():
    buckets = BucketCounts()
    buckets.update(np.full(50, 7, np.uint64), np.arange(50) % 2 == 0, pairs_of_odds(np.linspace(-3, 3, 50)))
    assert np.flatnonzero(buckets.counts.sum(axis=(1, 2))).tolist() == [7]


def test_the_bootstrap_over_users_covers_gauc():
    generator = np.random.default_rng(8)

    def of(users):
        groups, labels, odds = clustered(generator, users)
        kept = GroupedScores(1, rows_kept=1 << 22)
        kept.update(groups, labels[:, np.newaxis].astype(np.int8), odds[:, np.newaxis].astype(np.float32))
        return kept.aucs()[0]

    truth = of(users=200_000).figures()
    covered, sets = dict.fromkeys(truth, 0), 200
    for _ in range(sets):
        aucs = of(users=400)
        for name, value in aucs.figures().items():
            low, high = bootstrap_interval(value, aucs.replicates()[name])
            covered[name] += low <= truth[name] <= high
    assert all(0.9 <= count / sets <= 0.99 for count in covered.values()), covered


def test_the_calibration_error_has_no_interval_as_it_is_above_that_of_all_rows():
    """The reason: a calibrated model's error on some rows is what the rows of a bin happen to be, not 0."""
    generator = np.random.default_rng(9)
    errors = []
    for _ in range(50):
        odds = generator.normal(-1, 1, 4_000)
        errors.append(counted(generator.random(4_000) < sigmoid(odds), pairs_of_odds(odds)).result()["ece"])
    # 20 bins of 200 rows, each off by some 0.8 standard errors sqrt(p (1 - p) / 200)
    p = sigmoid(np.linspace(-3, 1, 20))
    assert np.mean(errors) == pytest.approx(np.mean(0.8 * np.sqrt(p * (1 - p) / 200)), rel=0.15)
    assert min(errors) > 0.01
    assert "ece" not in BucketCounts().replicates()


def test_few_groups_have_no_interval_though_they_have_many_rows():
    groups, labels, odds = clustered(np.random.default_rng(10), users=20, rows=500)
    buckets = BucketCounts()
    buckets.update(groups, labels, pairs_of_odds(odds))
    assert 0 < buckets.filled <= 20
    few = Estimates(counted(labels, pairs_of_odds(odds)), buckets, None).result()
    assert few["too_small"] and few["auc_interval"] is few["log_loss_interval"] is None
    many = BucketCounts()
    many.update(np.arange(len(labels), dtype=np.uint64), labels, pairs_of_odds(odds))
    assert not Estimates(counted(labels, pairs_of_odds(odds)), many, None).result()["too_small"]


def test_an_interval_of_nothing_does_not_exist():
    assert np.isnan(bootstrap_interval(0.5, np.full(10, np.nan))).all()
