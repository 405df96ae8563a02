"""Rows that share their user: what a layer does to the user's columns is done once, not once a row."""

import itertools

import numpy as np
import tensorflow as tf


class OneUserRows(tf.experimental.ExtensionType):
    """Stands for a tensor [rows, width] of which some columns are the same in every row.

    `tf.matmul` with a kernel multiplies those once, `tf.cast` and `tf.concat` keep them apart. To every other operation it is
    the tensor, its repeated columns written out: so no layer needs to know of it.

    Attributes:
      user: float [1, columns of the user].
      items: float [rows, the other columns].
      user_columns: Places of the user's columns in the tensor, ascending.
      item_columns: Places of the others, ascending.
    """

    user: tf.Tensor
    items: tf.Tensor
    user_columns: tuple[int, ...]
    item_columns: tuple[int, ...]

    @property
    def dtype(self) -> tf.DType:
        """That of the tensor."""
        return self.items.dtype

    @property
    def shape(self) -> tf.TensorShape:
        """That of the tensor: [rows, width]."""
        return tf.TensorShape([self.items.shape[0], len(self.user_columns) + len(self.item_columns)])

    def whole(self) -> tf.Tensor:
        """Returns the tensor: float [rows, width]."""
        repeated = tf.repeat(self.user, tf.shape(self.items)[0], axis=0)
        places = np.argsort(self.user_columns + self.item_columns)
        return tf.gather(tf.concat([repeated, self.items], axis=1), places, axis=1)


def _whole(rows: OneUserRows, dtype: tf.DType | None = None, **_) -> tf.Tensor:
    return rows.whole() if dtype in (None, rows.dtype) else NotImplemented


tf.register_tensor_conversion_function(OneUserRows, _whole)


def _product(a: OneUserRows, b: tf.Tensor, **kwargs) -> tf.Tensor:
    of_user = tf.matmul(a.user, tf.gather(b, a.user_columns), **kwargs)
    return tf.matmul(a.items, tf.gather(b, a.item_columns), **kwargs) + of_user


@tf.experimental.dispatch_for_api(tf.matmul, {"a": OneUserRows})
def _matmul(*args, **kwargs) -> tf.Tensor:  # TensorFlow asks for these or all parameters of its own version
    return _product(*args, **kwargs)


@tf.experimental.dispatch_for_api(tf.cast, {"x": OneUserRows})
def _cast(x: OneUserRows, dtype: tf.DType, name: str | None = None) -> OneUserRows:
    return OneUserRows(tf.cast(x.user, dtype), tf.cast(x.items, dtype), x.user_columns, x.item_columns)


@tf.experimental.dispatch_for_api(tf.concat, {"values": list[OneUserRows]})
def _concat(values: list[OneUserRows], axis: int, name: str = "concat") -> OneUserRows:
    if axis not in (-1, 1):
        return NotImplemented
    starts = list(itertools.accumulate((rows.shape[-1] for rows in values), initial=0))
    return OneUserRows(
        tf.concat([rows.user for rows in values], axis=1),
        tf.concat([rows.items for rows in values], axis=1),
        tuple(start + column for start, rows in zip(starts, values) for column in rows.user_columns),
        tuple(start + column for start, rows in zip(starts, values) for column in rows.item_columns),
    )
