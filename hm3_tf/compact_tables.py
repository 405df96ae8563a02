"""Embedding tables as they are served: as trained, or in a half or in little more than a quarter of the bytes."""

from collections.abc import Callable

import tensorflow as tf

from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.layers import gather_rows

_MOST = 127  # of the absolute values of int8 rows, so that they are symmetric
_SCALE_BYTES = tf.bfloat16.size


def _to_int8(rows: tf.Tensor) -> tf.Tensor:
    """Returns rows float32 [..., dim] as int8 [..., dim + 2]: multiples of a scale a row, then its bfloat16 in two bytes.

    So one gather reads both. A number is at most half of the scale, 1/254 of the largest of its row, from where it was.
    """
    scale = tf.cast(tf.reduce_max(tf.abs(rows), axis=-1) / _MOST, tf.bfloat16)
    steps = tf.round(tf.math.divide_no_nan(rows, tf.cast(scale, tf.float32)[..., tf.newaxis]))
    return tf.concat([tf.cast(steps, tf.int8), tf.bitcast(scale, tf.int8)], axis=-1)


def _from_int8(rows: tf.Tensor) -> tf.Tensor:
    steps, scale = tf.split(rows, [rows.shape[-1] - _SCALE_BYTES, _SCALE_BYTES], axis=-1)
    return tf.cast(steps, tf.float32) * tf.cast(tf.bitcast(scale, tf.bfloat16), tf.float32)[..., tf.newaxis]


_Codec = tuple[Callable[[tf.Tensor], tf.Tensor], Callable[[tf.Tensor], tf.Tensor]]
_CODECS: dict[str, _Codec] = {
    "float32": (tf.identity, tf.identity),
    "bfloat16": (lambda rows: tf.cast(rows, tf.bfloat16), lambda rows: tf.cast(rows, tf.float32)),
    "int8": (_to_int8, _from_int8),
}
STORAGES = tuple(_CODECS)


class CompactTable(tf.Module):
    """An embedding table that is only read.

    Args:
      table: float32 [rows, dim].
      storage: `float32`, the table itself; `bfloat16`; or `int8` with a scale a row, at dim + 2 bytes.

    Raises:
      ConfigError: The storage is another.
    """

    def __init__(self, table: tf.Variable, storage: str) -> None:
        super().__init__()
        if storage not in _CODECS:
            raise ConfigError(f"tables: expected one of {STORAGES}, got {storage!r}; {did_you_mean(storage, STORAGES)}")
        encode, self._decode = _CODECS[storage]
        self._rows = table if storage == "float32" else tf.Variable(encode(table), trainable=False)

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns rows int32 [...] of the table: float32 [..., dim]."""
        return self._decode(gather_rows(self._rows, rows))
