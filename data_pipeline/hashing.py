"""Raw column values to what the network reads: the one place where values are hashed, in training and in serving."""

import hashlib
from collections.abc import Iterable, Mapping

import tensorflow as tf

from hm3_tf.features import MISSING_BUCKET, Feature, HashedFeature

MISSING_INT64 = -(2**63)
MISSING_STRING = b""


def _salt_bits(salt: str) -> int:
    return int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little")


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection that avalanches, in uint64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(shift, tf.uint64)))
        bits *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(31, tf.uint64)))


def fingerprint(values: tf.Tensor, salt: str) -> tf.Tensor:
    """Returns a hash of each value: int64 or string, any shape, to uint64 of the same shape."""
    if values.dtype == tf.string:
        values = tf.strings.to_hash_bucket_fast(values, 2**63 - 1)
    return _mix(tf.bitwise.bitwise_xor(tf.bitcast(values, tf.uint64), tf.constant(_salt_bits(salt), tf.uint64)))


def hash_to_bucket(values: tf.Tensor, buckets: int, salt: str) -> tf.Tensor:
    """Returns the table row of each value.

    An int64 is hashed by its 64 bits, never through a float, so ids above 2**53 stay distinct; a string by its
    fingerprint. Values that mean "missing" (the smallest int64, the empty string) have row 0 to themselves.

    Args:
      values: int64 or string, any shape.
      buckets: Rows of the table, at least 2.
      salt: Seeds the hash.

    Returns:
      int32 of the same shape, in [0, buckets).
    """
    missing = tf.equal(values, MISSING_STRING if values.dtype == tf.string else MISSING_INT64)
    bits = fingerprint(values, salt)
    rows = 1 + tf.cast(tf.math.floormod(bits, tf.constant(buckets - 1, tf.uint64)), tf.int32)
    return tf.where(missing, MISSING_BUCKET, rows)


def network_inputs(columns: Mapping[str, tf.Tensor], features: Iterable[Feature]) -> dict[str, tf.Tensor]:
    """Returns the inputs of the network for raw columns.

    Args:
      columns: {column: int64, string or float32, [batch] or [batch, length]}; more columns than features are ignored.
      features: The features of the model.

    Returns:
      {feature: int32 table rows of a hashed feature, float32 of a numeric one}, shapes as they came.
    """
    return {
        feature.name: hash_to_bucket(columns[feature.name], feature.buckets, feature.salt)
        if isinstance(feature, HashedFeature)
        else columns[feature.name]
        for feature in features
    }
