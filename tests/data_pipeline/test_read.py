"""The reader: every row exactly once, in batches that depend on seed and epoch and on nothing else.

Plans of epochs are cheap, so the exactness of a plan is a property over hundreds of splits; a handful of logs is then
read for real.
"""

import operator
import shutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import read
from data_pipeline.hashing import network_inputs
from data_pipeline.index import load_index
from data_pipeline.inputs import select_features
from data_pipeline.read import WINDOW_ROWS, PartReader, Reader, lane_count, plan_epoch
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.statistics import no_statistics
from hm3_tf.errors import ConfigError
from tests.data_pipeline.conftest import (
    COLUMNS,
    FEATURES,
    FIRST_ID,
    SCHEMA,
    example,
    flip_byte,
    make_rows,
    write_index,
    write_records,
)

properties = settings(deadline=None, max_examples=60)
ID_COLUMNS = (Column("row_id", "int64", "ignored"), Column("click", "int64", "behavior"))
ID_SCHEMA = Schema(ID_COLUMNS, (Level("click", ("click",), gate=True),))


# Plans


@st.composite
def splits(draw):
    """(blocks [n, 4], {(shard, offset): ids of the block's rows}) of one to seven files."""
    files = draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=7))
    blocks, ids, first = [], {}, 0
    for shard, sizes in enumerate(files):
        for i, rows in enumerate(sizes):
            blocks.append((shard, 100 * i, 1, rows))
            ids[shard, 100 * i] = np.arange(first, first + rows)
            first += rows
    return np.array(blocks, np.int64), ids


@st.composite
def epochs(draw):
    """(blocks, ids, global batch, window rows, shuffle seed, workers) that fit each other."""
    blocks, ids = draw(splits())
    workers = draw(st.integers(1, 5))
    batch = workers * draw(st.integers(1, 24))
    window_rows = draw(st.sampled_from([1, batch, 2 * batch, 3 * batch + 1, WINDOW_ROWS]))
    seed = draw(st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)))
    return blocks, ids, batch, window_rows, seed, workers


def plans_of(blocks, batch, window_rows, seed, workers):
    return [
        plan_epoch(blocks, batch, shuffle_seed=seed, worker=worker, workers=workers, window_rows=window_rows)
        for worker in range(workers)
    ]


def planned_rows(plan, ids):
    """Returns {lane: [ids of the rows of each window]}, in the order of the blocks."""
    result = {}
    for position, lane in enumerate(plan.lanes.tolist()):
        windows = []
        for window in range(len(plan.first)):
            first, last = plan.first[window, position], plan.last[window, position]
            skip, size = plan.skip[window, position], plan.size[window, position]
            assert 0 <= first < last <= len(plan.blocks) and skip >= 0 and size >= 0
            read = np.concatenate([ids[shard, offset] for shard, offset in plan.blocks[first:last, :2].tolist()])
            assert skip + size <= len(read)
            windows.append(read[skip : skip + size])
        result[lane] = windows
    return result


@settings(properties, max_examples=300)
@given(epochs())
def test_a_plan_has_every_row_exactly_once_over_all_workers(epoch):
    blocks, ids, *rest = epoch
    rows = [row for plan in plans_of(blocks, *rest) for lane in planned_rows(plan, ids).values() for row in lane]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(blocks[:, 3].sum()))


@properties
@given(epochs())
def test_all_workers_plan_the_fewest_steps_that_hold_all_rows(epoch):
    blocks, _, batch, window_rows, seed, workers = epoch
    steps = -(-int(blocks[:, 3].sum()) // batch)
    for plan in plans_of(blocks, batch, window_rows, seed, workers):
        assert plan.steps == steps
        assert len(plan.first) == -(-steps // plan.window_steps)
        assert len(plan.lanes) * plan.lane_rows * workers == batch


@properties
@given(epochs())
def test_windows_of_a_lane_are_full_until_its_rows_end(epoch):
    blocks, _, *rest = epoch
    for plan in plans_of(blocks, *rest):
        full = plan.window_steps * plan.lane_rows
        for sizes in plan.size.T:
            left = sizes.sum() - full * np.arange(len(sizes))
            np.testing.assert_array_equal(sizes, np.clip(left, 0, full))


@properties
@given(epochs())
def test_lanes_have_equal_shares_to_the_row(epoch):
    blocks, _, *rest = epoch
    sizes = np.concatenate([plan.size.sum(axis=0) for plan in plans_of(blocks, *rest)])
    assert sizes.max() - sizes.min() <= 1


@properties
@given(splits(), st.integers(1, 12), st.integers(1, 400), st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_lanes_and_their_windows_do_not_depend_on_the_number_of_workers(split, lane_rows, window_rows, seed):
    blocks, ids = split
    expected = planned_rows(*plans_of(blocks, 8 * lane_rows, window_rows, seed, 1), ids)
    assert list(expected) == list(range(8))
    for workers in (2, 4, 8):
        found = {}
        for plan in plans_of(blocks, 8 * lane_rows, window_rows, seed, workers):
            found |= planned_rows(plan, ids)
        assert list(found) == list(expected)
        for lane, windows in expected.items():
            assert [rows.tolist() for rows in found[lane]] == [rows.tolist() for rows in windows]


@properties
@given(epochs())
def test_a_plan_without_a_seed_keeps_the_order_of_the_log(epoch):
    blocks, ids, batch, window_rows, _, workers = epoch
    plans = plans_of(blocks, batch, window_rows, None, workers)
    rows = [row for plan in plans for lane in planned_rows(plan, ids).values() for row in lane]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(blocks[:, 3].sum()))


@properties
@given(epochs())
def test_a_window_reads_no_block_in_vain(epoch):
    blocks, _, *rest = epoch
    for plan in plans_of(blocks, *rest):
        rows = plan.blocks[:, 3]
        for first, last, skip, size in zip(*(a.ravel() for a in (plan.first, plan.last, plan.skip, plan.size))):
            if size:
                assert skip < rows[first]
                assert skip + size > rows[first : last - 1].sum()
            else:
                assert last - first == 1


def test_blocks_are_permuted_by_seed_and_epoch():
    blocks = np.array([(0, i, 1, 10) for i in range(50)])
    orders = {seed: tuple(plan_epoch(blocks, 8, shuffle_seed=seed).blocks[:, 1]) for seed in [(0, 0), (0, 1), (1, 0)]}
    assert len(set(orders.values())) == 3
    for order in orders.values():
        assert sorted(order) == list(range(50)) != list(order)
    assert orders[0, 1] == tuple(plan_epoch(blocks, 8, shuffle_seed=(0, 1), worker=1, workers=2).blocks[:, 1])


@pytest.mark.parametrize("workers", range(1, 13))
def test_lanes_are_the_most_up_to_eight_that_share_out_the_batch(workers):
    for batch in range(workers, 40 * workers, workers):
        lanes = lane_count(batch, workers)
        fitting = [n for n in range(1, max(8, workers) + 1) if n % workers == 0 and batch % n == 0]
        assert lanes == max(fitting)


def test_a_batch_that_the_workers_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="global_batch_size: expected a multiple of the 3 workers, got 64"):
        lane_count(64, 3)


# Reading


def id_log(folder, rows, **options):
    """Returns the index of a log that has nothing but the number of each row."""
    return write_index(
        str(folder), {"row_id": [FIRST_ID + i for i in range(rows)], "click": [1] * rows}, columns=ID_COLUMNS, **options
    )


def id_reader(index):
    return Reader(index, ID_SCHEMA, (), carry=("row_id",))


def context(worker, workers):
    return tf.distribute.InputContext(workers, worker, workers)


def elements(dataset):
    return list(dataset.as_numpy_iterator())


def read_epoch(reader, batch, seed=0, epoch=0, workers=1, **options):
    """Returns the batches of each worker of an epoch."""
    return [
        elements(reader.training_dataset(batch, seed=seed, epoch=epoch, input_context=context(w, workers), **options))
        for w in range(workers)
    ]


def row_numbers(batch):
    """Returns which rows of the log a batch has, those of weight 0 left out."""
    _, _, weights, carried = batch
    return (carried["row_id"][weights > 0] - FIRST_ID).tolist()


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory):
    """Reader of 512 rows in one block: whatever is shuffled here, it is rows."""
    return id_reader(id_log(tmp_path_factory.mktemp("one_block"), 512, block_rows=512))


@pytest.fixture(scope="module")
def shuffled_block(one_block):
    """The rows of an epoch of `one_block` in one window: [step, lane, row of the lane]."""
    (batches,) = read_epoch(one_block, 64)
    return np.reshape([row_numbers(batch) for batch in batches], [8, 8, 8])


@pytest.fixture(scope="module")
def many_blocks(tmp_path_factory):
    """Reader of 611 rows in 18 blocks and 3 files: ten steps of 64."""
    return id_reader(id_log(tmp_path_factory.mktemp("many_blocks"), 611, files=3))


@pytest.fixture(scope="module")
def epoch_in_windows(many_blocks):
    """The batches of an epoch of `many_blocks` in windows of two steps."""
    return read_epoch(many_blocks, 64, window_rows=128)[0]


@pytest.mark.parametrize(
    "workers, files, rows, batch, record_format",
    [
        (2, 3, 250, 34, "packed"),
        (5, 2, 301, 40, "row"),
        (3, 7, 5, 48, "packed"),
    ],
)
def test_an_epoch_has_every_row_once_in_as_many_batches_on_every_worker(
    tmp_path, workers, files, rows, batch, record_format
):
    reader = id_reader(id_log(tmp_path, rows, files=files, record_format=record_format))
    batches = read_epoch(reader, batch, seed=3, epoch=1, workers=workers, window_rows=2 * batch)
    assert {len(share) for share in batches} == {reader.steps(batch, workers)} == {-(-rows // batch)}
    assert all(weights.shape == (batch // workers,) for share in batches for _, _, weights, _ in share)
    assert sorted(row for share in batches for step in share for row in row_numbers(step)) == list(range(rows))


def test_the_global_batch_of_a_step_does_not_depend_on_the_number_of_workers(many_blocks, epoch_in_windows):
    expected = [set(row_numbers(batch)) for batch in epoch_in_windows]
    assert set().union(*expected) == set(range(611))
    for workers in (2, 4):
        shares = read_epoch(many_blocks, 64, workers=workers, window_rows=128)
        found = [set().union(*map(row_numbers, step)) for step in zip(*shares)]
        assert found == expected


def test_one_seed_and_epoch_give_one_order(many_blocks, epoch_in_windows):
    assert_same_batches(read_epoch(many_blocks, 64, window_rows=128)[0], epoch_in_windows)


def test_another_seed_or_epoch_gives_another_order_of_the_same_rows(many_blocks, epoch_in_windows):
    orders = [
        [row for batch in batches for row in row_numbers(batch)]
        for batches in (
            epoch_in_windows,
            read_epoch(many_blocks, 64, epoch=1, window_rows=128)[0],
            read_epoch(many_blocks, 64, seed=1, window_rows=128)[0],
        )
    ]
    for i, order in enumerate(orders):
        assert sorted(order) == list(range(611))
        for other in orders[:i]:
            assert np.mean(np.equal(order, other)) < 0.05


def test_rows_are_shuffled_and_not_only_blocks(shuffled_block):
    assert np.mean(np.diff(shuffled_block.ravel()) == 1) < 0.05


def test_a_batch_has_rows_of_every_lane(shuffled_block):
    np.testing.assert_array_equal(shuffled_block // 64, np.broadcast_to(np.arange(8)[:, np.newaxis], [8, 8, 8]))


def test_rows_of_a_window_are_spread_over_all_its_steps(shuffled_block):
    assert np.ptp(shuffled_block, axis=2).mean() > 32  # of 64 rows of the lane; 7 where neighbors stay together


def test_rows_of_one_block_are_shuffled_anew_in_every_epoch_seed_lane_and_window(one_block):
    def shuffles(**options):
        (batches,) = read_epoch(one_block, 64, window_rows=256, **options)
        lanes = np.reshape([row_numbers(batch) for batch in batches], [2, 4, 8, 8])  # window, step, lane, row
        return [lanes[window, :, lane].ravel() % 32 for window in range(2) for lane in range(8)]

    orders = [tuple(order) for options in ({}, {"epoch": 1}, {"seed": 1}) for order in shuffles(**options)]
    assert all(sorted(order) == list(range(32)) for order in orders)
    assert len(set(orders)) == 3 * 16


@pytest.mark.parametrize("start", [3, 4, 10])
def test_an_epoch_resumes_at_any_step_as_if_it_had_not_stopped(many_blocks, epoch_in_windows, start):
    dataset = many_blocks.training_dataset(64, seed=0, epoch=0, window_rows=128, start_step=start)
    assert dataset.cardinality() == 10 - start
    assert_same_batches(elements(dataset), epoch_in_windows[start:])


@pytest.mark.parametrize("stretches", [[10], [4, 4, 2], [3, 7], [1] * 10])
def test_stretches_of_an_epoch_are_the_epoch(many_blocks, epoch_in_windows, stretches):
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)] * 2)
    def read(start, steps):  # as a worker of servers does
        options = {"seed": 0, "epoch": 0, "window_rows": 128, "start_step": start, "steps": steps}
        dataset = many_blocks.training_dataset(64, **options)
        return dataset.batch(steps).get_single_element()

    starts = np.cumsum([0, *stretches[:-1]])
    parts = [read(tf.constant(start), tf.constant(steps, tf.int64)) for start, steps in zip(starts, stretches)]
    found = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    batches = [tf.nest.map_structure(operator.itemgetter(i), found) for i in range(10)]
    assert_same_batches(batches, epoch_in_windows)


@pytest.mark.parametrize("rows, steps", [(128, 2), (191, 2), (1, 1)])
def test_a_window_is_whole_steps(many_blocks, rows, steps):
    assert many_blocks.window_steps(64, window_rows=rows) == steps


def test_a_worker_resumes_at_its_step(many_blocks):
    options = {"seed": 0, "epoch": 0, "input_context": context(1, 2), "window_rows": 192}
    whole = elements(many_blocks.training_dataset(64, **options))
    assert_same_batches(elements(many_blocks.training_dataset(64, **options, start_step=4)), whole[4:])


def test_rows_before_the_first_step_are_not_read(many_blocks, tmp_path):
    shutil.copytree(many_blocks.index.files[0].rsplit("/", 1)[0], tmp_path / "log")
    files = tuple(f"{tmp_path}/log/{i}.tfrecord" for i in range(3))
    reader = id_reader(type(many_blocks.index)("packed", files, many_blocks.index.file_bytes, many_blocks.index.blocks))
    plan = plan_epoch(reader.index.blocks, 64, shuffle_seed=(0, 0), window_rows=64)
    needed = {
        block for first, last in zip(plan.first[8:].ravel(), plan.last[8:].ravel()) for block in range(first, last)
    }
    skipped = next(block for block in range(len(plan.blocks)) if block not in needed)
    shard, offset, _, _ = plan.blocks[skipped]
    flip_byte(files[shard], offset + 30)
    assert len(read_epoch(reader, 64, window_rows=64, start_step=8)[0]) == 2
    with pytest.raises(tf.errors.DataLossError):
        read_epoch(reader, 64, window_rows=64)


@pytest.mark.parametrize(
    "batch, workers, steps", [(64, 1, 10), (64, 4, 10), (611, 1, 1), (612, 3, 1), (610, 2, 2), (1, 1, 611)]
)
def test_steps_are_the_batches_that_hold_all_rows(many_blocks, batch, workers, steps):
    assert many_blocks.steps(batch, workers) == steps


def test_a_batch_that_cannot_be_shared_is_refused_before_reading(many_blocks):
    with pytest.raises(ConfigError, match="expected a multiple of the 2 workers, got 63"):
        many_blocks.training_dataset(63, seed=0, epoch=0, input_context=context(0, 2))


def test_batches_have_exact_static_shapes(small_log):
    reader = Reader(small_log[1], SCHEMA, FEATURES, carry=("row_id", "tags"))
    inputs, labels, weights, carried = reader.training_dataset(
        64, seed=0, epoch=0, input_context=context(1, 4)
    ).element_spec
    assert {name: (spec.dtype, spec.shape) for name, spec in inputs.items()} == {
        "user": (tf.int32, (16,)),
        "brand": (tf.int32, (16,)),
        "tags": (tf.int32, (16, 3)),
        "price": (tf.float32, (16,)),
        "vector": (tf.float32, (16, 2)),
    }
    assert list(labels) == ["click", "d_mi", "d_ma", "purchase"]
    assert {(spec.dtype, spec.shape.as_list()[0]) for spec in labels.values()} == {(tf.float32, 16)}
    assert (weights.dtype, weights.shape) == (tf.float32, (16,))
    assert {name: (spec.dtype, spec.shape) for name, spec in carried.items()} == {
        "row_id": (tf.int64, (16,)),
        "tags": (tf.int64, (16, 3)),
    }


# The contents of rows


def expected_columns(rows):
    """The raw columns as tensors, missing values as they are written."""
    tags = [(row or [])[:3] for row in rows["tags"]]
    return {
        "user": tf.constant([-(2**63) if v is None else v for v in rows["user"]], tf.int64),
        "brand": tf.constant([v or b"" for v in rows["brand"]]),
        "tags": tf.constant([row + [-(2**63)] * (3 - len(row)) for row in tags], tf.int64),
        "price": tf.constant([np.nan if v is None else v for v in rows["price"]], tf.float32),
        "vector": tf.constant(rows["vector"], tf.float32),
    }


def flags_of(rows):
    """The levels as the log has them, by loops."""
    return {
        "click": [c > 0 for c in rows["click"]],
        "d_mi": [q > 0 for q in rows["qa"]],
        "d_ma": [c > 0 or w > 0 for c, w in zip(rows["cart"], rows["wish"])],
        "purchase": [p > 0 for p in rows["pay"]],
    }


def labels_of(rows):
    """The levels behind the gate, the click."""
    flags = flags_of(rows)
    return {name: [f and c for f, c in zip(flag, flags["click"])] for name, flag in flags.items()}


def breaks_hierarchy(rows):
    flags = flags_of(rows)
    return [not c and (a or b or p) for c, a, b, p in zip(*flags.values())]


def read_ordered(reader, batch=100, workers=1):
    """Returns (inputs, labels, weights, carried) of all rows in order; the filling rows at the end are left out."""
    parts = [elements(reader.ordered_dataset(batch, input_context=context(w, workers))) for w in range(workers)]
    total = reader.index.rows
    sizes = np.diff([total * w // workers for w in range(workers + 1)])
    shares = [tf.nest.map_structure(lambda *x: np.concatenate(x), *share) for share in parts]
    for share, size in zip(shares, sizes):
        assert not share[2][size:].any(), "filling rows have weight 0"
    return tf.nest.map_structure(lambda *x: np.concatenate([part[:size] for part, size in zip(x, sizes)]), *shares)


@pytest.fixture(scope="module")
def in_order(small_log):
    """The whole small log as one worker reads it in order."""
    return read_ordered(Reader(small_log[1], SCHEMA, FEATURES, carry=("row_id", "brand")))


def test_the_ordered_log_has_the_order_of_the_log(small_log, in_order):
    np.testing.assert_array_equal(in_order[3]["row_id"], small_log[0]["row_id"])


def test_parts_are_read_as_the_ordered_log_and_traced_once(small_log, in_order, monkeypatch):
    monkeypatch.setattr(read, "_ORDERED_WINDOW_ROWS", 20)
    parts, found = PartReader(Reader(small_log[1], SCHEMA, FEATURES, carry=("row_id", "brand")), batch_rows=7), []
    for index in small_log[1].shards():
        batches = list(parts(index))
        assert len(batches) == -(-index.rows // 7) > 3
        rows = tf.nest.map_structure(lambda *values: np.concatenate(values), *batches)
        assert not rows[2][index.rows :].any(), "filling rows have weight 0"
        found.append(tf.nest.map_structure(operator.itemgetter(slice(index.rows)), rows))
    tf.nest.map_structure(
        lambda whole, *part: np.testing.assert_array_equal(np.concatenate(part), whole), in_order, *found
    )
    assert len(found) > 1 and parts._read_window.experimental_get_tracing_count() == 1


def test_three_workers_read_the_log_in_contiguous_shares(small_log, in_order):
    found = read_ordered(id_reader(small_log[1]), batch=48, workers=3)
    np.testing.assert_array_equal(found[3]["row_id"], in_order[3]["row_id"])
    np.testing.assert_array_equal(found[1]["click"], in_order[1]["click"])


def test_inputs_are_those_of_the_row(small_log, in_order):
    expected = network_inputs(expected_columns(small_log[0]), FEATURES)
    assert in_order[0].keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(in_order[0][name], values, err_msg=name)


def test_labels_are_nested_under_the_click(small_log, in_order):
    assert any(breaks_hierarchy(small_log[0]))
    for name, label in labels_of(small_log[0]).items():
        np.testing.assert_array_equal(in_order[1][name], np.float32(label), err_msg=name)


def test_the_weight_column_is_the_weight_of_the_row(small_log, in_order):
    np.testing.assert_array_equal(in_order[2], np.float32(small_log[0]["importance"]))


def test_carried_columns_are_as_they_were_logged(small_log, in_order):
    assert in_order[3]["brand"].tolist() == [brand or b"" for brand in small_log[0]["brand"]]
    assert in_order[3].keys() == {"row_id", "brand"}


@pytest.fixture(scope="module")
def unweighted(small_log):
    """The small log in order, without sample weights and with a merged level."""
    merged = {"d_action": ("d_mi", "d_ma")}
    return read_ordered(Reader(small_log[1], SCHEMA, (), merged_levels=merged, sample_weights=False))


def test_without_sample_weights_every_row_weighs_one(unweighted):
    np.testing.assert_array_equal(unweighted[2], np.ones(611))


def test_batches_have_no_fourth_part_unless_columns_are_carried(unweighted, in_order):
    assert (len(unweighted), len(in_order)) == (3, 4)


def test_merged_levels_are_the_union_of_theirs(unweighted):
    labels = unweighted[1]
    assert set(labels) == {"click", "d_mi", "d_ma", "purchase", "d_action"}
    np.testing.assert_array_equal(labels["d_action"], np.maximum(labels["d_mi"], labels["d_ma"]))


def test_rows_against_the_hierarchy_are_dropped_by_weight_zero(small_log):
    rows, index = small_log
    _, labels, weights, carried = read_ordered(Reader(index, SCHEMA, (), nesting="drop", carry=("row_id",)))
    expected = np.where(breaks_hierarchy(rows), 0, np.float32(rows["importance"]))
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(carried["row_id"], rows["row_id"])
    np.testing.assert_array_equal(labels["purchase"], np.float32(labels_of(rows)["purchase"]))


def test_rows_against_the_hierarchy_are_an_error_that_names_the_kinds(small_log):
    message = "nesting.*d_mi without click, d_ma without click, purchase without click"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        elements(Reader(small_log[1], SCHEMA, (), nesting="error").ordered_dataset(64))


def test_a_log_that_keeps_the_hierarchy_is_read_under_the_policy_error(tmp_path):
    index = write_index(str(tmp_path), make_rows(50, nested=True))
    reader = Reader(index, SCHEMA, (), nesting="error")
    np.testing.assert_array_equal(read_ordered(reader)[2], np.float32(make_rows(50)["importance"]))


@pytest.fixture(scope="module")
def shuffled(small_log):
    """The batches of an epoch of the small log, with all features."""
    return read_epoch(Reader(small_log[1], SCHEMA, FEATURES, carry=("row_id",)), 62, window_rows=256)[0]


def test_both_record_formats_give_the_same_batches(small_log, shuffled, tmp_path):
    index = write_index(str(tmp_path), small_log[0], files=3, record_format="row")
    assert_same_batches(
        read_epoch(Reader(index, SCHEMA, FEATURES, carry=("row_id",)), 62, window_rows=256)[0], shuffled
    )


def test_the_columns_of_a_shuffled_row_stay_together(small_log, shuffled):
    rows = small_log[0]
    for inputs, labels, weights, carried in shuffled:
        numbers = carried["row_id"] - FIRST_ID
        present = weights > 0
        np.testing.assert_array_equal(inputs["vector"][present, 0], numbers[present])
        np.testing.assert_array_equal(weights[present], np.float32(rows["importance"])[numbers[present]])
        np.testing.assert_array_equal(labels["purchase"], np.float32(labels_of(rows)["purchase"])[numbers])


def test_rows_that_fill_a_batch_up_have_no_ids(tmp_path):
    """Else they would touch embeddings, other ones on other numbers of workers."""
    schema = Schema((*ID_COLUMNS, Column("item", "int64", hashing=Hashing(8))), ID_SCHEMA.levels)
    write_records(f"{tmp_path}/a.tfrecord", [example(click=1, item=i) for i in range(5)])
    features = select_features(schema, no_statistics(schema), names=("item",), default_dim=1, dims={}, buckets={})
    reader = Reader(load_index(str(tmp_path)), schema, features)
    (batch,) = elements(reader.training_dataset(8, seed=0, epoch=0))
    assert (batch[0]["item"][batch[2] > 0] > 0).all() and not batch[0]["item"][batch[2] == 0].any()
    assert (batch[2] > 0).sum() == 5


@pytest.mark.parametrize("dtype, weight", [("float", 0.5), ("int64", 2)])
def test_a_row_without_a_weight_weighs_one_and_filling_rows_nothing(tmp_path, dtype, weight):
    schema = Schema((*ID_COLUMNS, Column("importance", dtype, "weight")), ID_SCHEMA.levels)
    write_records(f"{tmp_path}/a.tfrecord", [example(click=1), *[example(click=1, importance=weight)] * 4])
    (batch,) = elements(Reader(load_index(str(tmp_path)), schema, ()).ordered_dataset(8))
    np.testing.assert_array_equal(batch[2], [1, weight, weight, weight, weight, 0, 0, 0])


def test_a_reader_reads_the_columns_that_it_needs(small_log):
    def names(*args, **options):
        return [column.name for column in Reader(small_log[1], SCHEMA, *args, **options).columns]

    behaviors = ["click", "qa", "cart", "wish", "pay"]
    assert names(()) == ["importance", *behaviors]
    assert names((), sample_weights=False) == behaviors
    assert names(FEATURES[:1], sample_weights=False, carry=("row_id",)) == ["row_id", "user", *behaviors]
    assert names(FEATURES) == [column.name for column in COLUMNS if column.name != "row_id"]


def test_an_unknown_policy_is_refused_when_the_reader_is_made(small_log):
    with pytest.raises(ConfigError, match="data.nesting: .*'dorp'; did you mean 'drop'"):
        Reader(small_log[1], SCHEMA, FEATURES, nesting="dorp")


def test_an_unknown_carried_column_is_refused_when_the_reader_is_made(small_log):
    with pytest.raises(ConfigError, match="carried column: expected a column of the schema, got 'user_id'"):
        Reader(small_log[1], SCHEMA, FEATURES, carry=("user_id",))


def test_an_unknown_part_of_a_merged_level_is_refused(small_log):
    with pytest.raises(ConfigError, match="level 'd_action': expected the level 'd_me' in the log"):
        Reader(small_log[1], SCHEMA, (), merged_levels={"d_action": ("d_me",)}).ordered_dataset(64)


def test_a_log_without_gates_has_nothing_to_drop(tmp_path):
    schema = Schema((Column("name", "string", hashing=Hashing(5)), ID_COLUMNS[1]), (Level("click", ("click",)),))
    index = write_index(str(tmp_path), {"name": [b"a", b"b"], "click": [1, 0]}, columns=schema.columns)
    (batch,) = elements(Reader(index, schema, (), nesting="drop").ordered_dataset(2))
    assert batch[1]["click"].tolist() == [1, 0]
    assert batch[2].tolist() == [1, 1]
