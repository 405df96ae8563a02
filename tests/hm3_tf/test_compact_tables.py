"""Embedding tables in fewer bytes: what is read back, how far it is off, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.compact_tables import STORAGES, CompactTable
from hm3_tf.errors import ConfigError

ROWS, DIM = 400, 16
TABLE = (np.random.default_rng(0).normal(size=(ROWS, DIM)) * np.logspace(-6, 2, ROWS)[:, np.newaxis]).astype(np.float32)


def served(storage, table=TABLE):
    compact = CompactTable(tf.Variable(table), storage)
    return compact, compact.gather(tf.range(len(table))).numpy()


def size(compact):
    return sum(np.prod(variable.shape) * variable.dtype.size for variable in compact.variables)


def test_float32_is_the_table_itself():
    table = tf.Variable(TABLE)
    compact = CompactTable(table, "float32")
    assert [variable is table for variable in compact.variables] == [True]
    np.testing.assert_array_equal(compact.gather(tf.range(ROWS)), TABLE)


def test_bfloat16_rounds_to_eight_bits_in_half_of_the_bytes():
    compact, rows = served("bfloat16")
    np.testing.assert_allclose(rows, TABLE, rtol=2**-8)
    assert size(compact) == TABLE.nbytes / 2


def test_int8_is_off_by_at_most_half_a_step_of_its_row_whatever_the_size_of_the_numbers():
    _, rows = served("int8")
    step = np.abs(TABLE).max(axis=1, keepdims=True) / 127 * (1 + 2**-8)  # the scale is rounded to bfloat16
    assert (np.abs(rows - TABLE) <= step / 2).all()
    assert (np.abs(rows - TABLE) > step / 4).any()


@pytest.mark.parametrize("dim", [16, 32])
def test_int8_takes_at_most_three_tenths_of_the_bytes(dim):
    table = np.ones((100, dim), np.float32)
    assert size(served("int8", table)[0]) <= 0.3 * table.nbytes


@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_of_zeros_and_rows_of_one_number_come_back_as_they_are(storage):
    table = np.array([[0.0] * 4, [0.5] * 4, [-0.25, 0.25, 0.0, -0.25]], np.float32)
    compact, rows = served(storage, table)
    np.testing.assert_allclose(rows, table, rtol=2**-8)
    assert (rows[0] == 0).all()
    assert compact.gather(tf.constant([[2, 0], [1, 1]])).shape == (2, 2, 4)


def test_another_storage_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"tables: expected one of .*, got 'int4'; did you mean 'int8'"):
        CompactTable(tf.Variable(TABLE), "int4")
