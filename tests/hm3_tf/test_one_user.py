"""Rows of one user stand for the tensor in which the user is repeated."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from hm3_tf.one_user import OneUserRows

GENERATOR = np.random.default_rng(0)
ROWS = OneUserRows(
    GENERATOR.normal(size=(1, 3)).astype(np.float32),
    GENERATOR.normal(size=(5, 2)).astype(np.float32),
    (0, 2, 3),
    (1, 4),
)
KERNEL = tf.constant(GENERATOR.normal(size=(5, 7)).astype(np.float32))


def whole(rows):
    result = np.empty((len(rows.items), rows.shape[-1]), np.float32)
    result[:, list(rows.user_columns)] = rows.user
    result[:, list(rows.item_columns)] = rows.items
    return result


def test_it_has_the_shape_and_dtype_of_the_tensor():
    assert ROWS.shape == (5, 5)
    assert ROWS.dtype == tf.float32


def test_to_other_operations_it_is_the_tensor_with_the_user_repeated():
    np.testing.assert_array_equal(tf.convert_to_tensor(ROWS), whole(ROWS))
    np.testing.assert_array_equal(tf.nn.relu(ROWS), np.maximum(whole(ROWS), 0))
    np.testing.assert_array_equal(tf.concat([ROWS, tf.ones([5, 1])], axis=1)[:, :5], whole(ROWS))


def products(function):
    """Returns the shapes of the left sides of all products in the graph of a function."""
    graph = tf.function(function).get_concrete_function().graph
    return [op.inputs[0].shape.as_list() for op in graph.get_operations() if op.type == "MatMul"]


def test_a_product_multiplies_the_user_once():
    np.testing.assert_allclose(tf.matmul(ROWS, KERNEL), whole(ROWS) @ KERNEL.numpy(), rtol=1e-5, atol=1e-6)
    assert sorted(products(lambda: tf.matmul(a=ROWS, b=KERNEL))) == [[1, 3], [5, 2]]


def test_parts_beside_each_other_are_still_multiplied_once():
    no_user = OneUserRows(tf.zeros([1, 0]), tf.ones([5, 1]), (), (0,))
    kernel = tf.concat([KERNEL, KERNEL[:1], KERNEL], axis=0)
    expected = np.concatenate([whole(ROWS), np.ones((5, 1)), whole(ROWS)], axis=1) @ kernel.numpy()
    join = keras.layers.Concatenate()
    np.testing.assert_allclose(tf.matmul(join([ROWS, no_user, ROWS]), kernel), expected, rtol=1e-5, atol=1e-6)
    assert sorted(products(lambda: tf.matmul(join([ROWS, no_user, ROWS]), kernel))) == [[1, 6], [5, 5]]


def test_a_cast_keeps_the_user_apart():
    cast = tf.cast(ROWS, tf.bfloat16)
    assert (cast.dtype, cast.user.dtype, cast.user.shape[0]) == (tf.bfloat16, tf.bfloat16, 1)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_dense_layer_takes_it_for_the_tensor(precision):
    layer = keras.layers.Dense(4, "relu", dtype=precision)
    expected = tf.cast(layer(whole(ROWS)), tf.float32)
    # In bfloat16 the two parts of a sum are each rounded to eight bits.
    np.testing.assert_allclose(
        tf.cast(layer(ROWS), tf.float32), expected, atol=1e-6 if precision == "float32" else 0.05
    )
    assert len(products(lambda: layer(ROWS))) == 2


def test_cross_layers_take_it_for_the_tensor():
    layer = tfrs.layers.dcn.Cross()
    expected = layer(whole(ROWS), whole(ROWS))
    np.testing.assert_allclose(layer(ROWS, ROWS), expected, rtol=1e-5, atol=1e-6)
