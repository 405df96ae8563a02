"""Lazy Adam against Keras' Adam where they must agree, and against NumPy where they must not."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from hm3_tf.config import OPTIMIZERS
from hm3_tf.errors import ConfigError
from hm3_tf.optimizers import LazyAdam, make_optimizer, reset_moments

RATE, BETA_1, BETA_2, EPSILON = 0.01, 0.9, 0.999, 1e-7
ROWS, DIM = 6, 3


def table(seed=0):
    return tf.Variable(np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32), name="table")


def random_steps(batches, seed=1):
    """Returns (rows, gradients of the rows) for each batch of row numbers."""
    generator = np.random.default_rng(seed)
    return [(list(rows), generator.normal(size=(len(rows), DIM)).astype(np.float32)) for rows in batches]


def slices(rows, values):
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows, tf.int32), tf.constant([ROWS, DIM]))


def dense(rows, values):
    result = np.zeros((ROWS, DIM), np.float32)
    np.add.at(result, rows, values)
    return tf.constant(result)


def run(optimizer, variable, steps, form=slices):
    for rows, values in steps:
        optimizer.apply_gradients([(form(rows, values), variable)])
    return variable.numpy()


def numpy_lazy_adam(start, steps):
    """Adam of Kingma and Ba (their Algorithm 1 with the rate of Section 2) on the rows of each step, in float64."""
    weights = start.astype(np.float64)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, (rows, values) in enumerate(steps, start=1):
        for row in set(rows):
            gradient = sum(v.astype(np.float64) for r, v in zip(rows, values) if r == row)
            first[row] = BETA_1 * first[row] + (1 - BETA_1) * gradient
            second[row] = BETA_2 * second[row] + (1 - BETA_2) * gradient**2
            rate = RATE * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
            weights[row] -= rate * first[row] / (np.sqrt(second[row]) + EPSILON)
    return weights


SOME_ROWS = random_steps([[0, 1], [1, 2], [1], [4, 0], [2, 1, 0], [4]])
ALL_ROWS = random_steps([range(ROWS)] * 6)
DUPLICATES = random_steps([[0, 1, 0], [3, 3, 3], [0, 3, 1, 1]])


def test_dense_weights_get_exactly_the_adam_of_keras():
    lazy, adam = LazyAdam(RATE), keras.optimizers.Adam(RATE, jit_compile=False)
    ours, theirs = table(), table()
    for step in SOME_ROWS:
        np.testing.assert_array_equal(run(lazy, ours, [step], dense), run(adam, theirs, [step], dense))


def test_a_table_gets_the_adam_of_keras_where_every_row_is_in_every_batch():
    lazy = run(LazyAdam(RATE), table(), ALL_ROWS)
    adam = run(keras.optimizers.Adam(RATE), table(), ALL_ROWS)
    np.testing.assert_allclose(lazy, adam, rtol=0, atol=2e-7)


@pytest.mark.parametrize("steps", [SOME_ROWS, ALL_ROWS, DUPLICATES], ids=["some rows", "all rows", "duplicates"])
def test_a_table_gets_adam_on_the_rows_of_each_batch(steps):
    start = table().numpy()
    np.testing.assert_allclose(run(LazyAdam(RATE), table(), steps), numpy_lazy_adam(start, steps), rtol=0, atol=2e-6)


def test_the_adam_of_keras_is_another_where_rows_are_missing_from_a_batch():
    adam = run(keras.optimizers.Adam(RATE), table(), SOME_ROWS)
    assert np.abs(adam - numpy_lazy_adam(table().numpy(), SOME_ROWS)).max() > 1e-3


def test_rows_without_a_gradient_stand_still_and_so_do_their_moments():
    variable, optimizer = table(), LazyAdam(RATE)
    run(optimizer, variable, random_steps([[0, 1, 2]]))
    parts = {"weights": variable, "first": optimizer._momentums[0], "second": optimizer._velocities[0]}
    before = {name: part.numpy() for name, part in parts.items()}
    run(optimizer, variable, random_steps([[1, 4]], seed=5))
    for name, part in parts.items():
        np.testing.assert_array_equal(part.numpy()[[0, 2, 3, 5]], before[name][[0, 2, 3, 5]], err_msg=name)
        assert (part.numpy()[[1, 4]] != before[name][[1, 4]]).any(axis=1).all(), name


def test_the_step_counts_steps_and_not_visits_of_a_row():
    optimizer, variable = LazyAdam(RATE), table()
    start = variable.numpy()
    run(optimizer, variable, random_steps([[0], [0], [0]]))
    steps = random_steps([[5]], seed=9)
    run(optimizer, variable, steps)
    # Fourth step, fresh moments: rate * sqrt(1 - b2^4) / (1 - b1^4) * 0.1 g / sqrt(0.001 g^2), so the sign decides.
    move = RATE * np.sqrt(1 - BETA_2**4) / (1 - BETA_1**4) * 0.1 / np.sqrt(0.001)
    np.testing.assert_allclose(variable.numpy()[5], start[5] - move * np.sign(steps[0][1][0]), rtol=0, atol=1e-5)


def test_the_gradients_of_a_row_that_stands_twice_in_a_batch_are_summed():
    twice = [([2, 2], np.repeat(np.float32([[0.25], [0.5]]), DIM, axis=1))]
    once = [([2], np.full((1, DIM), np.float32(0.75)))]
    np.testing.assert_allclose(
        run(LazyAdam(RATE), table(), twice * 3), run(LazyAdam(RATE), table(), once * 3), rtol=0, atol=1e-7
    )


def gather_step(optimizer, variable):
    """Returns a compiled step on a loss that reads rows with repeats."""

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(variable, rows)) * [1.0, 2.0, 3.0])
        optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])

    return step


def test_a_compiled_step_on_a_gather_is_that_of_numpy():
    variable, batches = table(), ([0, 1, 1], [1, 4, 4, 4], [0, 5])
    weights, steps = table().numpy(), []
    optimizer = LazyAdam(RATE)
    optimizer.build([variable])
    step = gather_step(optimizer, variable)
    for rows in batches:
        steps.append((rows, 2 * variable.numpy()[rows] * np.array([1, 2, 3])))
        step(tf.constant(rows))
    np.testing.assert_allclose(variable.numpy(), numpy_lazy_adam(weights, steps), rtol=0, atol=2e-6)


def test_dense_and_sparse_weights_share_the_step_count():
    optimizer, sparse, whole = LazyAdam(RATE), table(), table(3)
    for rows, values in SOME_ROWS:
        optimizer.apply_gradients([(slices(rows, values), sparse), (dense(rows, values), whole)])
    assert int(optimizer.iterations) == len(SOME_ROWS)
    np.testing.assert_allclose(sparse.numpy(), numpy_lazy_adam(table().numpy(), SOME_ROWS), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(
        whole, run(keras.optimizers.Adam(RATE, jit_compile=False), table(3), SOME_ROWS, dense)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_chosen_variables_start_anew(name):
    optimizer, reset, kept = make_optimizer(name, RATE), table(), table(3)
    for rows, values in SOME_ROWS:
        optimizer.apply_gradients([(slices(rows, values), reset), (slices(rows, values), kept)])
    before = optimizer._momentums[1].numpy()
    reset_moments(optimizer, [reset])
    assert not optimizer._momentums[0].numpy().any() and not optimizer._velocities[0].numpy().any()
    assert before.any() and optimizer._velocities[1].numpy().any()
    np.testing.assert_array_equal(optimizer._momentums[1], before)
    assert int(optimizer.iterations) == len(SOME_ROWS)


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="expected amsgrad=False"):
        LazyAdam(RATE, amsgrad=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_as_if_never_stopped(name, tmp_path):
    whole = run(make_optimizer(name, RATE), table(), SOME_ROWS)
    first, variable = make_optimizer(name, RATE), table()
    run(first, variable, SOME_ROWS[:3])
    path = tf.train.Checkpoint(optimizer=first, table=variable).save(str(tmp_path / "checkpoint"))

    second, restored = make_optimizer(name, RATE), table(seed=9)
    second.build([restored])
    tf.train.Checkpoint(optimizer=second, table=restored).restore(path).assert_consumed()
    assert int(second.iterations) == 3
    np.testing.assert_array_equal(second._momentums[0], first._momentums[0])
    np.testing.assert_array_equal(run(second, restored, SOME_ROWS[3:]), whole)


def test_an_optimizer_has_the_learning_rate_it_was_asked_for():
    assert isinstance(make_optimizer("lazy_adam", 0.25), LazyAdam)
    assert type(make_optimizer("adam", 0.25)) is keras.optimizers.Adam
    for name in OPTIMIZERS:
        assert float(make_optimizer(name, 0.25).learning_rate) == 0.25


def test_an_unknown_optimizer_is_refused_with_a_hint():
    message = "training.optimizer: expected one of ('lazy_adam', 'adam'), got 'lazy_adm'; did you mean 'lazy_adam'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_optimizer("lazy_adm", 0.1)
