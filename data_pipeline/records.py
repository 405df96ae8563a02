"""The two TFRecord codecs: packed (an Example holds up to 1,024 impressions) and row (an Example is one impression).

Packed is the default: a list a column, parsed without any work per row, in a ninth of the bytes. Row is what other systems
write, and can be read in place. On disk as in memory a missing int64 is the smallest int64, a missing string is
empty and a missing float is NaN.
"""

from collections.abc import MutableSequence, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.schema import SCALAR, VARIABLE, Column

BLOCK_ROWS = 1024
RECORD_FORMATS = ("packed", "row")
ROWS_KEY = "#rows"  # of a packed Example: its number of impressions
_VALUES_TAG, _ONE_BYTE = b"\x0a", 128  # of a list of packed values; of the numbers that a varint says in a byte
_LENGTHS_SUFFIX = "#lengths"  # of a packed variable-length column: values a row

MISSING = {"int64": MISSING_INT64, "string": MISSING_STRING, "float": float("nan")}
TF_DTYPES = {"int64": tf.int64, "string": tf.string, "float": tf.float32}
ARROW_TYPES = {"int64": pa.int64(), "string": pa.binary(), "float": pa.float32()}


def arrow_type(column: Column) -> pa.DataType:
    """Returns the Arrow type in which the pipeline carries a column."""
    value = ARROW_TYPES[column.dtype]
    return value if column.shape == SCALAR else pa.list_(value)


def _values(feature: tf.train.Feature, dtype: str) -> MutableSequence:
    """Returns the list of a Feature for values of a dtype, to be filled in place: composing messages copies them."""
    lists = {"int64": "int64_list", "float": "float_list", "string": "bytes_list"}
    return getattr(feature, lists[dtype]).value


def _fill(feature: tf.train.Feature, dtype: str, values: np.ndarray) -> None:
    """Sets the list of a Feature to values [values], in one step where their wire format is plain bytes.

    Floats are four bytes each, and int64 below 128 (labels, days, small codes) one: six times as fast as value by value.
    """
    plain = None
    if dtype == "float":
        plain = values.astype("<f4").tobytes()
    elif dtype == "int64" and len(values) and values.min() >= 0 and values.max() < _ONE_BYTE:
        plain = values.astype(np.uint8).tobytes()
    if plain:
        lists = feature.float_list if dtype == "float" else feature.int64_list
        lists.MergeFromString(_VALUES_TAG + _varint(len(plain)) + plain)
    else:
        _values(feature, dtype).extend(values.tolist())


def _varint(number: int) -> bytes:
    """Returns a length as protobuf writes it: seven bits a byte, low ones first, the high bit set on all but the last."""
    head = b""
    while number >= _ONE_BYTE:
        head += bytes([number % _ONE_BYTE + _ONE_BYTE])
        number //= _ONE_BYTE
    return head + bytes([number])


def flat_values(column: Column, array: pa.Array) -> np.ndarray:
    """Returns the values of a column row after row, missing ones as they are written: int64, float32 or bytes [values]."""
    flat = array if column.shape == SCALAR else array.flatten()
    if flat.null_count:
        flat = pc.fill_null(flat, pa.scalar(MISSING[column.dtype], flat.type))
    return flat.to_numpy(zero_copy_only=False)


def list_lengths(array: pa.Array) -> np.ndarray:
    """Returns the number of values of each row of a list column, 0 for a null: int [rows]."""
    return pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)


def encode_packed(batch: pa.RecordBatch, columns: Sequence[Column]) -> bytes:
    """Returns one serialized Example that holds all rows of a batch.

    Args:
      batch: Columns in their `arrow_type`; nulls are missing values.
      columns: The columns to write.

    Returns:
      A serialized tf.train.Example with the values of each column row after row.
    """
    example = tf.train.Example()
    features = example.features.feature
    _values(features[ROWS_KEY], "int64").append(batch.num_rows)
    for column in columns:
        array = batch.column(column.name)
        _fill(features[column.name], column.dtype, flat_values(column, array))
        if column.shape == VARIABLE:
            _fill(features[column.name + _LENGTHS_SUFFIX], "int64", list_lengths(array))
    return example.SerializeToString(deterministic=True)


def encode_rows(batch: pa.RecordBatch, columns: Sequence[Column]) -> list[bytes]:
    """Returns a serialized Example for each row of a batch.

    Args:
      batch: Columns in their `arrow_type`; nulls are missing values.
      columns: The columns to write.

    Returns:
      Serialized tf.train.Examples in row order.
    """
    values, starts = [], []
    for column in columns:
        array = batch.column(column.name)
        values.append(flat_values(column, array).tolist())
        lengths = np.ones(batch.num_rows, np.int64) if column.shape == SCALAR else list_lengths(array)
        starts.append(np.concatenate([[0], np.cumsum(lengths)]).tolist())
    return [_encode_row(row, columns, values, starts) for row in range(batch.num_rows)]


def _encode_row(row: int, columns: Sequence[Column], values: Sequence[list], starts: Sequence[list]) -> bytes:
    example = tf.train.Example()
    for column, flat, start in zip(columns, values, starts):
        _values(example.features.feature[column.name], column.dtype).extend(flat[start[row] : start[row + 1]])
    return example.SerializeToString(deterministic=True)


def _pad(ragged: tf.RaggedTensor, column: Column) -> tf.Tensor:
    """Cuts and pads each row of a variable-length column to its declared length."""
    return ragged.to_tensor(MISSING[column.dtype], shape=[None, column.length])


def parse_packed(serialized: tf.Tensor, columns: Sequence[Column]) -> dict[str, tf.Tensor]:
    """Returns the columns of packed Examples.

    Args:
      serialized: string [records].
      columns: The columns to read.

    Returns:
      {column: its dtype, [rows] or [rows, length]}, variable-length columns padded with missing values.

    Raises:
      tf.errors.InvalidArgumentError: When run, a column does not have a value for each row.
    """
    specs = {ROWS_KEY: tf.io.FixedLenFeature([], tf.int64)}
    for column in columns:
        specs[column.name] = tf.io.RaggedFeature(TF_DTYPES[column.dtype])
        if column.shape == VARIABLE:
            specs[column.name + _LENGTHS_SUFFIX] = tf.io.RaggedFeature(tf.int64)
    parsed = tf.io.parse_example(serialized, specs)
    flat = {name: values.flat_values for name, values in parsed.items() if name != ROWS_KEY}
    with tf.control_dependencies([_check_sizes(flat, columns, tf.reduce_sum(parsed[ROWS_KEY]))]):
        return {column.name: _unpack(column, flat) for column in columns}


def _check_sizes(flat: dict[str, tf.Tensor], columns: Sequence[Column], rows: tf.Tensor) -> tf.Operation:
    """Fails when run if a column does not have a value for each row; one check for all columns, as each op costs."""
    sizes = [(column, *pair) for column in columns for pair in _sizes(column, flat, rows)]
    messages = [
        f"column {column.name!r} of dtype {column.dtype} does not have its values for each row of a packed record"
        for column, *_ in sizes
    ]
    right = tf.equal(tf.stack([found for _, found, _ in sizes]), tf.stack([expected for *_, expected in sizes]))
    first_wrong = tf.gather(messages, tf.argmin(tf.cast(right, tf.int32)))
    return tf.debugging.Assert(tf.reduce_all(right), [first_wrong])


def _sizes(column: Column, flat: dict[str, tf.Tensor], rows: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Returns the sizes of a column's lists as (found, expected), int64 scalars."""
    found = tf.size(flat[column.name], tf.int64)
    if column.shape != VARIABLE:
        return [(found, rows * (column.length or 1))]
    lengths = flat[column.name + _LENGTHS_SUFFIX]
    possible = (lengths >= 0) & (lengths <= found)  # others end the process where they are padded
    return [
        (tf.size(lengths, tf.int64), rows),
        (found, tf.reduce_sum(lengths)),
        (tf.math.count_nonzero(possible), tf.size(lengths, tf.int64)),
    ]


def _unpack(column: Column, flat: dict[str, tf.Tensor]) -> tf.Tensor:
    values = tf.identity(flat[column.name])
    if column.shape == VARIABLE:
        lengths = flat[column.name + _LENGTHS_SUFFIX]
        return _pad(tf.RaggedTensor.from_row_lengths(values, lengths, validate=False), column)
    return values if column.shape == SCALAR else tf.reshape(values, [-1, column.length])


def parse_rows(serialized: tf.Tensor, columns: Sequence[Column]) -> dict[str, tf.Tensor]:
    """Returns the columns of row Examples; a column that an Example does not have is missing there.

    Args:
      serialized: string [rows].
      columns: The columns to read.

    Returns:
      {column: its dtype, [rows] or [rows, length]}, variable-length columns padded with missing values.

    Raises:
      tf.errors.InvalidArgumentError: When run, a column has another dtype, or not as many values as declared.
    """
    specs = {}
    for column in columns:
        dtype = TF_DTYPES[column.dtype]
        if column.shape == VARIABLE:
            specs[column.name] = tf.io.RaggedFeature(dtype)
        else:
            default = np.full([n or 0 for n in column.shape], MISSING[column.dtype])
            specs[column.name] = tf.io.FixedLenFeature(column.shape, dtype, default)
    parsed = tf.io.parse_example(serialized, specs)
    return {c.name: _pad(parsed[c.name], c) if c.shape == VARIABLE else parsed[c.name] for c in columns}


PARSERS = {"packed": parse_packed, "row": parse_rows}
