"""AUCs within groups against scikit-learn, and the sample of groups that keeps the memory bounded."""

import concurrent.futures
import threading

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hm3_tf.group_auc import GroupedScores, within_group_aucs

ROWS = 3_000


def rows(seed=0, groups=200):
    """Returns (hashed groups, outcomes of two targets, scores): the second target has half of the rows."""
    generator = np.random.default_rng(seed)
    names = generator.integers(0, 2**63, groups).astype(np.uint64) * np.uint64(2)
    owner = generator.integers(0, groups, ROWS)
    outcomes = (generator.random((ROWS, 2)) < 0.3).astype(np.int8)
    outcomes[generator.random(ROWS) < 0.5, 1] = -1
    scores = np.round(generator.normal(0, 2, (ROWS, 2)) + outcomes, 1).astype(np.float32)  # with ties and both signs
    return names[owner], outcomes, scores


def expected_gauc(groups, outcomes, scores):
    """Returns (mean weighted by rows, mean, number) of the AUCs of groups with both classes."""
    aucs, weights = [], []
    for group in np.unique(groups):
        among = (groups == group) & (outcomes >= 0)
        if len(set(outcomes[among])) == 2:
            aucs.append(roc_auc_score(outcomes[among], scores[among]))
            weights.append(among.sum())
    return np.average(aucs, weights=weights), np.mean(aucs), len(aucs)


def kept(*parts, **options):
    scores = GroupedScores(2, **options)
    for part in parts:
        scores.update(*part)
    return scores


@pytest.mark.parametrize("target", [0, 1])
def test_gauc_is_the_mean_of_scikit_learns_aucs(target):
    groups, outcomes, scores = rows()
    weighted, unweighted, count = expected_gauc(groups, outcomes[:, target], scores[:, target])
    result = kept((groups, outcomes, scores)).aucs()[target]
    assert result.groups == count < 200 + target
    assert result.figures()["gauc"] == pytest.approx(weighted, abs=1e-12)
    assert result.figures()["gauc_unweighted"] == pytest.approx(unweighted, abs=1e-12)


def test_by_hand():
    # Group 0: 2 beats 1 and ties with 2: (1 + 0.5) / 2. Group 1 has one class. Group 2: the order is wrong.
    groups, labels = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1, 0, 0, 1, 1, 1, 0], bool)
    found, values, sizes = within_group_aucs(groups, labels, np.array([2, 1, 2, 5, 6, -3, -1], np.float32))
    assert (found.tolist(), values.tolist(), sizes.tolist()) == ([0, 2], [0.75, 0.0], [3, 2])


def test_a_log_without_a_group_of_both_classes_has_no_gauc():
    groups = np.arange(4, dtype=np.uint64)
    result = kept((groups, np.ones((4, 2), np.int8), np.zeros((4, 2), np.float32))).aucs()[0]
    assert result.groups == 0 and np.isnan(result.figures()["gauc"])


def test_beyond_the_bound_whole_groups_are_kept_and_the_rest_is_dropped():
    groups, outcomes, scores = rows(groups=1_000)
    sample = kept(*([column[part] for column in (groups, outcomes, scores)] for part in np.split(np.arange(ROWS), 6)),
                  rows_kept=1_000)  # fmt: skip
    chosen = sample.rows[0]
    assert len(chosen) <= 1_000 and 0.25 <= sample.share < 1
    assert len(chosen) == np.isin(groups, chosen).sum()  # all rows of the groups that are there


def test_the_sample_is_the_same_in_parts_and_as_a_whole():
    groups, outcomes, scores = rows(groups=1_000)
    parts = [tuple(column[part] for column in (groups, outcomes, scores)) for part in np.split(np.arange(ROWS), 6)]
    whole, merged = kept((groups, outcomes, scores), rows_kept=1_000), GroupedScores(2, rows_kept=1_000)
    for part in parts:
        merged.merge(kept(part, rows_kept=1_000))
    assert merged.share == whole.share
    for mine, theirs in zip(merged.rows, whole.rows):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("rows_kept", [1 << 20, 4_000, 900])
def test_gathered_workers_are_the_whole_and_never_more_than_is_kept(rows_kept):
    parts = [rows(seed, groups=1_000) for seed in range(2)]
    whole, workers = kept(*parts, rows_kept=rows_kept), [kept(part, rows_kept=rows_kept) for part in parts]
    gathered = []
    together, meet = {}, threading.Barrier(2)

    def gather_as(worker):
        def gather_rows(array):
            together[worker] = array
            meet.wait(10)
            result = np.concatenate([together[0], together[1]])
            meet.wait(10)
            gathered.append(len(result))
            return result

        workers[worker].gather(gather_rows)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(gather_as, range(2)))
    assert max(gathered) <= rows_kept
    for worker in workers:
        assert worker.share == whole.share
        assert worker.aucs()[0].figures() == whole.aucs()[0].figures()
