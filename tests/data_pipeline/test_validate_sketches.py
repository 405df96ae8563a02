"""The counts behind validation, against figures by other means."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import roc_auc_score

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.validate_sketches import (
    CategoryCounts,
    OrderCounts,
    Rows,
    RowSample,
    divergence,
    fingerprints,
    row_fingerprints,
)

NUMBERS = np.arange(2_000)


def add(counts, values, labels, first=0):
    """Adds rows from number `first` on to the counts of a column; labels are bool [labels, rows]."""
    counts.update(values, fingerprints(values), Rows.of(labels, first))


def test_the_auc_of_numbers_is_that_of_their_order_with_missing_ones_lowest():
    rng = np.random.default_rng(0)
    labels = rng.random(2_000) < 0.3
    values = (1e6 + labels + rng.standard_normal(2_000)).astype(np.float32)
    values[::7] = np.nan
    counts = OrderCounts(2)
    for part in np.split(NUMBERS, 4):
        add(counts, values[part], np.stack([labels, ~labels])[:, part], part[0])
    expected = roc_auc_score(labels, np.nan_to_num(values, nan=0))
    np.testing.assert_allclose(counts.aucs(), [expected, expected], atol=5e-3)


def test_the_auc_of_values_is_one_where_they_tell_the_label_and_a_half_where_they_do_not_come_again():
    labels = NUMBERS // 3 % 2 == 0
    for values, low, high in ((labels + 40, 1, 1), (NUMBERS, 0.45, 0.55)):
        counts = CategoryCounts(1)
        add(counts, values.astype(np.int64), labels[np.newaxis])
        assert low <= counts.aucs()[0] <= high


def test_a_list_is_scored_by_the_value_that_tells_most():
    rng = np.random.default_rng(0)
    labels = rng.random(6_000) < 0.03
    lists = rng.integers(0, 500, (6_000, 20))
    lists[rng.random(lists.shape) < 0.3] = MISSING_INT64
    marked = np.where(labels[:, np.newaxis] & (np.arange(20) == rng.integers(0, 20, (6_000, 1))), 999, lists)
    for values, low, high in ((lists, 0.4, 0.6), (marked, 0.99, 1)):
        counts = CategoryCounts(1)
        for part in np.split(np.arange(6_000), 3):
            add(counts, values[part], labels[np.newaxis, part], part[0])
        assert low <= counts.aucs()[0] <= high


def test_lists_count_each_value_and_empty_ones_once():
    values = np.array([[5, 6], [5, MISSING_INT64], [MISSING_INT64] * 2])
    counts = CategoryCounts(1)
    add(counts, values, np.array([[True, False, False]]))
    assert counts.counts[0].sum() == 4 and counts.counts[1].sum() == 2
    assert counts.counts[0, :, 0].sum() == 1
    assert counts.present == 3


@pytest.mark.parametrize("distinct", [100, 100_000, 5_000_000])
def test_the_share_of_new_values_is_told_however_many_there_are(distinct):
    train = CategoryCounts(0)
    add(train, np.arange(distinct), np.zeros((0, distinct), bool))
    for first, share in ((0, 0), (distinct - distinct // 4, 0.75), (distinct, 1)):
        counts = CategoryCounts(0, train)
        add(counts, np.arange(first, first + distinct), np.zeros((0, distinct), bool))
        assert counts.unseen_share == pytest.approx(share, abs=0.02)


def test_the_share_of_new_values_is_not_told_by_a_few_where_there_were_millions():
    train = CategoryCounts(0)
    add(train, np.arange(5_000_000), np.zeros((0, 5_000_000), bool))
    counts = CategoryCounts(0, train)
    add(counts, np.arange(5_000_000, 5_010_000), np.zeros((0, 10_000), bool))
    assert np.isnan(counts.unseen_share)


def test_divergence_is_that_of_jensen_and_shannon_less_chance():
    first, second = np.array([60_000, 30_000, 10_000, 0]), np.array([10_000, 20_000, 30_000, 40_000])
    by_chance = 3 * 2e-5 / np.log(2)
    assert divergence(first, second) == pytest.approx(jensenshannon(first, second, base=2) ** 2 - by_chance)
    assert divergence(first, np.zeros(4)) == 0
    assert divergence(np.array([1, 0]) * 10**9, np.array([0, 1]) * 10**9) == pytest.approx(1)


def test_samples_of_one_distribution_are_not_apart():
    rng = np.random.default_rng(0)
    for size in (100, 10_000):
        draws = [np.bincount(rng.integers(0, 50, size), minlength=50) for _ in range(2)]
        assert divergence(*draws) == 0


def test_a_sample_of_rows_keeps_all_copies_of_those_it_keeps():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**64, 400_000, dtype=np.uint64)
    sample, other = RowSample(), RowSample()
    for part in np.split(np.concatenate([rows, rows[:100_000]]), 5):
        sample.update(part)
    other.update(rows[300_000:])
    assert len(sample._rows) <= 2**17
    assert sample.repeated_share == pytest.approx(0.2, abs=0.01)
    assert sample.share_in(other) == pytest.approx(0.2, abs=0.01)
    assert other.share_in(sample) == 1


def test_rows_have_one_fingerprint_only_where_all_their_columns_are_equal():
    ids, lists = np.array([1, 2, 1, 1]), np.array([[2, 1], [1, 1], [1, 2], [2, 1]])
    rows = row_fingerprints([fingerprints(ids), fingerprints(lists)])
    assert rows[0] == rows[3] and len(set(rows.tolist())) == 3
