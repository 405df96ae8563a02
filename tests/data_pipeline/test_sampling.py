"""Epochs of a share of the unclicked rows: which rows, how many, and that workers, epochs and resumed runs agree."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.read import Reader, plan_epoch
from data_pipeline.sampling import NegativeSampling, count_clicked_rows
from data_pipeline.schema import Column, Level, Schema
from tests.data_pipeline.conftest import write_index

COLUMNS = (
    Column("row_id", "int64", "ignored"),
    Column("click", "int64", "behavior"),
    Column("pay", "int64", "behavior"),
)
SCHEMA = Schema(COLUMNS, (Level("click", ("click",), gate=True), Level("purchase", ("pay",))))
ROWS, RATE, KEEP = 5_000, 0.1, 0.2
rng = np.random.default_rng(0)
CLICKED = rng.random(ROWS) < RATE
CLICKED[1_000:1_400] = False  # blocks without a click
CLICKED[2_000:2_111] = True  # and blocks of clicks alone
CLICKED[0] = True  # as the rows that fill the last batch are
LOG = {"row_id": list(range(ROWS)), "click": CLICKED.astype(int).tolist(), "pay": (rng.random(ROWS) < 0.3).astype(int)}


@pytest.fixture(scope="module", params=["packed", "row"])
def reader(request, tmp_path_factory):
    """A reader of the log that carries the number of each row, and samples."""
    folder = tmp_path_factory.mktemp(request.param)
    index = write_index(folder, LOG, columns=COLUMNS, files=3, record_format=request.param)
    whole = Reader(index, SCHEMA, (), carry=("row_id",))
    counts = count_clicked_rows(index.blocks, whole.ordered_dataset(512), "click")
    return dataclasses.replace(whole, sampling=NegativeSampling(KEEP, "click", counts))


def batches(reader, *, batch=128, worker=0, workers=1, **options):
    """Returns the rows of each step, less the filling ones: [(row ids, clicked)]."""
    context = tf.distribute.InputContext(workers, worker, workers)
    options = {"seed": 3, "epoch": 0, "window_rows": 1_024, **options}
    result = []
    for _, labels, weights, carried in reader.training_dataset(batch, input_context=context, **options):
        real = weights.numpy() > 0
        result.append((carried["row_id"].numpy()[real], labels["click"].numpy()[real] > 0))
    return result


def rows_of(steps):
    return np.concatenate([rows for rows, _ in steps])


def test_clicks_are_counted_in_every_block(reader):
    blocks = reader.index.blocks
    expected = np.add.reduceat(CLICKED, np.cumsum(blocks[:, 3]) - blocks[:, 3])
    assert reader.sampling.clicked_rows.tolist() == expected.tolist()
    assert 0 in expected and (expected == blocks[:, 3]).any()


def test_an_epoch_has_every_clicked_row_once_and_a_share_of_the_others(reader):
    rows = rows_of(batches(reader))
    assert len(set(rows.tolist())) == len(rows)
    assert CLICKED[rows].sum() == CLICKED.sum()
    assert (~CLICKED[rows]).sum() == round((~CLICKED).sum() * KEEP)


def test_labels_stay_with_their_rows(reader):
    for rows, clicked in batches(reader):
        np.testing.assert_array_equal(clicked, CLICKED[rows])


def test_an_epoch_has_fewer_steps_and_all_epochs_have_the_same(reader):
    steps = reader.steps(128)
    assert steps == -(-(CLICKED.sum() + round((~CLICKED).sum() * KEEP)) // 128)
    assert dataclasses.replace(reader, sampling=None).steps(128) > 2.5 * steps
    assert {len(batches(reader, epoch=epoch)) for epoch in range(4)} == {steps}


def test_other_epochs_and_seeds_keep_other_rows_each_as_often(reader):
    epochs = 10
    kept = np.zeros(ROWS)
    for epoch in range(epochs):
        kept[rows_of(batches(reader, epoch=epoch))] += 1
    counts = kept[~CLICKED]
    # Binomial: 10 draws at 0.2 have mean 2 and variance 1.6; planned numbers of a block take a little of it.
    assert counts.mean() == pytest.approx(KEEP * epochs, rel=0.01)
    assert 1.37 < counts.var() < 1.75
    assert set(rows_of(batches(reader, seed=4)).tolist()) != set(rows_of(batches(reader)).tolist())


def test_the_same_epoch_is_read_again_alike(reader):
    for (first, _), (second, _) in zip(batches(reader), batches(reader)):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_have_the_global_batches_of_one(reader, workers):
    alone = batches(reader)
    shares = [batches(reader, worker=worker, workers=workers) for worker in range(workers)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, (rows, _) in enumerate(alone):
        together = np.concatenate([share[step][0] for share in shares])
        assert sorted(together.tolist()) == sorted(rows.tolist())


@pytest.mark.parametrize("start", [1, 5])
def test_an_epoch_resumes_at_any_step(reader, start):
    for (resumed, _), (rows, _) in zip(batches(reader, start_step=start), batches(reader)[start:]):
        np.testing.assert_array_equal(resumed, rows)


def test_a_split_in_its_own_order_is_read_whole(reader):
    rows = [carried["row_id"].numpy()[weights > 0] for _, _, weights, carried in reader.ordered_dataset(512)]
    assert np.concatenate(rows).tolist() == list(range(ROWS))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any), min_size=1, max_size=20),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_the_planned_rows_lie_between_the_clicks_and_the_block_and_have_one_total(counts, keep_rate, epoch):
    clicked, unclicked = np.array(counts).T
    blocks = np.stack([np.zeros_like(clicked), np.arange(len(counts)) * 100, clicked, clicked + unclicked], axis=1)
    sampling = NegativeSampling(keep_rate, "click", clicked)
    order = np.random.default_rng(epoch).permutation(len(counts))
    rows = sampling.kept_rows(blocks, order)
    assert (clicked[order] <= rows).all() and (rows <= blocks[order, 3]).all()
    assert rows.sum() == clicked.sum() + int(np.floor(unclicked.sum() * keep_rate + 0.5))


def test_a_window_decodes_no_more_rows_than_one_of_all_rows(reader):
    blocks = reader.index.blocks
    plan = plan_epoch(blocks, 128, shuffle_seed=(0, 0), window_rows=1_024, sampling=reader.sampling)
    whole = plan_epoch(blocks, 128, shuffle_seed=(0, 0), window_rows=1_024)
    assert plan.window_steps == 2 and whole.window_steps == 8  # the rows kept are 30 % of the log
