"""Gradients of tables over replicas: the same sums as an all-gather of all ids, and bytes by hand."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.exchange import RowExchange, TableExchange, TableTraffic, measure_traffic
from hm3_tf.features import HashedFeature, Table
from hm3_tf.layers import HashedEmbeddings, gather_rows
from hm3_tf.optimizers import LazyAdam

DIM = 3
ROWS = {"tail": 10, "small": 4, "other": 9, "tiny": 2}  # of one variable, in this order: small 10-13, tiny 23-24
TOTAL, STEPS = sum(ROWS.values()), 4


def traffic(table, dense):
    """A table of which dense bytes are below (2 * rows < 8 * distinct), or are not."""
    return TableTraffic(Table(table, ROWS[table], DIM), ids=100, distinct=ROWS[table] if dense else 0, replicas=8)


def exchange(*dense):
    return RowExchange([traffic(table, table in dense) for table in ROWS])


def slices(rows, seed):
    values = np.random.default_rng(seed).normal(size=(len(rows), DIM)).astype(np.float32)
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows, tf.int32), tf.constant([TOTAL, DIM]))


def summed(parts):
    """What a strategy makes of a part of each replica."""
    if not isinstance(parts[0], tf.IndexedSlices):
        return tf.add_n(parts)
    return tf.IndexedSlices(*(tf.concat([getattr(p, name) for p in parts], 0) for name in ("values", "indices")))


def dense(gradients):
    """The sum [TOTAL, DIM] of slices, in float64."""
    result = np.zeros((TOTAL, DIM))
    for each in gradients:
        np.add.at(result, each.indices.numpy(), each.values.numpy().astype(np.float64))
    return result


REPLICAS = {
    "duplicates in and between replicas": [[0, 10, 10, 24, 14], [0, 0, 10, 13, 24, 22], [23, 9]],
    "a replica without rows that are gathered": [[10, 11, 23], [0, 0, 14]],
    "a replica without rows that are dense": [[0, 9, 9], [13, 24]],
    "no dense row at all": [[0, 9], [14, 22, 14]],
    "the first and last row of each table": [[0, 9, 10, 13, 14, 22, 23, 24], [24, 23, 22, 14, 13, 10, 9, 0]],
}
DENSE = [(), ("small", "tiny"), ("tail",), ("small", "other"), tuple(ROWS)]


@pytest.mark.parametrize("rows", REPLICAS.values(), ids=REPLICAS)
@pytest.mark.parametrize("tables", DENSE, ids=" ".join)
def test_replicas_get_the_sum_of_all_gradients_for_exactly_the_rows_that_have_one(rows, tables):
    gradients = [slices(own, seed) for seed, own in enumerate(rows)]
    parts = [exchange(*tables).split(gradient) for gradient in gradients]
    total = exchange(*tables).join([summed(part) for part in zip(*parts)])
    np.testing.assert_allclose(dense([total]), dense(gradients), rtol=0, atol=1e-6)
    assert set(total.indices.numpy()) == {row for own in rows for row in own}


def test_a_row_whose_gradient_is_zero_has_a_gradient_as_on_one_replica():
    zero = tf.IndexedSlices(tf.zeros((1, DIM)), tf.constant([11]), tf.constant([TOTAL, DIM]))
    assert exchange("small").join(exchange("small").split(zero)).indices.numpy().tolist() == [11]


def test_a_replica_sends_a_row_once_however_often_its_batch_has_it():
    whole, others = exchange("small").split(slices([0, 0, 24, 10, 0, 12, 12], seed=0))
    assert sorted(others.indices.numpy()) == [0, 24]
    assert whole.shape == (4, DIM + 1)
    assert whole[:, -1].numpy().tolist() == [1, 0, 1, 0]


def test_bytes_are_those_of_a_count_by_hand():
    # 4 replicas, 3 steps of a ring; a row is 3 floats and an index, 16 bytes. All-reduce: 2 * 3 / 4 * 100 rows * 16.
    each = TableTraffic(Table("t", 100, 3), ids=80, distinct=60, replicas=4)
    assert (each.naive_bytes, each.gathered_bytes, each.dense_bytes) == (3 * 80 * 16, 3 * 60 * 16, 2400)
    assert each.is_dense


@pytest.mark.parametrize(("replicas", "distinct", "is_dense"), [(8, 25, False), (8, 26, True), (2, 100, False)])
def test_a_table_is_dense_where_that_moves_fewer_bytes(replicas, distinct, is_dense):
    # Of 100 rows: 2 * 7 / 8 * 100 = 175 rows cross, against 7 * 25 = 175 gathered. Over two replicas it never is below.
    assert TableTraffic(Table("t", 100, 3), 1000, distinct, replicas).is_dense == is_dense


def test_the_bytes_of_a_step_are_those_of_its_rows():
    sums = [tf.zeros((6, DIM + 1)), slices([0, 0, 1, 9, 20], seed=0)]
    # 8 replicas: 5 rows gathered, of which each sent 5 / 8, 7 times; 2 * 7 / 8 * 6 rows reduced (small and tiny). 16 bytes.
    assert exchange("small", "tiny").sent_bytes(sums) == int((5 / 8 * 7 + 2 * 7 / 8 * 6) * 16)


def feature(name, table, length=None):
    return HashedFeature(name, "int64", ROWS[table], "", table, DIM, length)


FEATURES = (feature("a", "tail"), feature("b", "small"), feature("c", "other", length=2), feature("d", "other"))
BATCH = {
    "a": tf.constant([1, 1, 2]),
    "b": tf.constant([3, 2, 1]),
    "c": tf.constant([[0, 4], [4, 4], [8, 0]]),
    "d": tf.constant([5, 4, 0]),
}


def test_ids_and_distinct_rows_of_a_table_are_counted_over_all_its_features():
    other = measure_traffic(Table("other", 9, DIM), FEATURES, BATCH, replicas=2)
    assert (other.ids, other.distinct) == (9, 4)  # 0, 4, 5, 8


def batch_of(step, replica):
    """Returns what a replica reads in a step; the second one reads row 0 of `tail` alone."""
    generator = np.random.default_rng((step, replica))
    batch = {f.name: generator.integers(0, f.buckets, (3, *([f.length] if f.length else []))) for f in FEATURES}
    return batch | ({"a": np.zeros(3)} if replica else {})


def trained(strategy, replicas):
    """Returns the tables, and bytes a step, after steps of LazyAdam on two devices: with an exchange as of `replicas`."""
    with strategy.scope():
        layer = HashedEmbeddings(FEATURES, seed=3)
        layer(BATCH)
        optimizer = LazyAdam(0.01)
        optimizer.build(layer.trainable_variables)
        if replicas:
            optimizer.exchange = TableExchange([layer], BATCH, replicas)

    def step(batch, scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(layer(batch) * 300.0) * scale)
        optimizer.apply_gradients(zip(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables))

    @tf.function
    def run(batches, scale):
        strategy.run(step, (batches, scale))

    for number in range(STEPS):
        batches = [{name: tf.constant(v, tf.int32) for name, v in batch_of(number, r).items()} for r in range(2)]
        each = strategy.experimental_distribute_values_from_function(
            lambda context, of=batches: of[context.replica_id_in_sync_group]
        )
        run(each, tf.constant(1.0 + number))
    assert optimizer.iterations.numpy() == STEPS
    return layer.get_weights()[0], optimizer.exchange and optimizer.exchange.mean_sent_bytes()


def gathered_rows(*tables):
    """Distinct rows of tables that the two replicas read in a step, together; the mean over the steps."""
    reads = [
        measure_traffic(Table(t, ROWS[t], DIM), FEATURES, batch_of(step, replica), 2)
        for t in tables
        for step in range(STEPS)
        for replica in range(2)
    ]
    return sum(each.distinct for each in reads) / STEPS


@pytest.fixture(scope="module")
def two_replicas():
    """Without the collective operations, whose keys clash with those of other strategies in a process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def test_training_takes_the_steps_of_an_all_gather_of_all_ids(two_replicas):
    naive, none = trained(two_replicas, None)
    assert none is None
    for_two, sent = trained(two_replicas, 2)
    np.testing.assert_allclose(for_two, naive, rtol=0, atol=1e-6)
    assert sent == gathered_rows("tail", "small", "other") * 16 / 2  # 16 bytes a row, to one other replica
    # As one of eight replicas would send it: `small` and `other` are reduced, 2 * 7 / 8 of their 4 + 9 rows.
    for_eight, sent = trained(two_replicas, 8)
    np.testing.assert_allclose(for_eight, naive, rtol=0, atol=1e-6)
    assert sent == (gathered_rows("tail") + 2 * (4 + 9)) * 16 * 7 / 8


def test_the_log_says_what_is_chosen_and_why(caplog):
    layer = HashedEmbeddings(FEATURES, seed=0, name="embeddings")
    layer(BATCH)
    with caplog.at_level(logging.INFO, "hm3_tf.exchange"):
        TableExchange([layer], BATCH, replicas=4)
    # 3 * 2 rows of 16 bytes, or 1.5 * 10; 3 * 3, or 1.5 * 4; 3 * 4, or 1.5 * 9. Ids: 3 * (3 + 3 + 9).
    assert caplog.messages == [
        "gradients of embeddings/embeddings_3:0 over 4 replicas, bytes that each sends a step by the first batch: 384; 720 "
        "if a row an id were gathered. Reduced densely: small 96 (144 gathered). Distinct rows gathered: tail 96 (240 "
        "dense), other 192 (216 dense)."
    ]


def test_replicas_read_the_rows_of_a_batch_and_never_a_whole_table():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        table = tf.Variable(tf.zeros((1_000, 3)))
        optimizer = LazyAdam()
        optimizer.build([table])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(gather_rows(table, tf.constant([5, 7, 5])))
        optimizer.apply_gradients(zip(tape.gradient(loss, [table]), [table]))

    graph = tf.function(lambda: strategy.run(step)).get_concrete_function().graph
    reads = [op for op in graph.get_operations() if op.type == "ReadVariableOp"]
    assert sum(op.type == "ResourceGather" for op in graph.get_operations()) == 2 * 3  # the table and both moments
    assert not [op.name for op in reads if op.outputs[0].shape.rank == 2]
