"""Hashed and numeric features, and the embedding tables they share."""

import dataclasses
import re

import pytest

from hm3_tf.errors import ConfigError
from hm3_tf.features import COMBINERS, MISSING_BUCKET, HashedFeature, NumericFeature, Table, embedding_tables


def hashed(name="item", **changes):
    fields = {"dtype": "int64", "buckets": 100, "salt": "items", "table": "items", "dim": 16}
    return HashedFeature(name, **(fields | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dtype": "float"}, "expected int64 or string to hash, got 'float'"),
        ({"dtype": "int32"}, "expected int64 or string to hash, got 'int32'"),
        ({"buckets": 1}, "expected at least 2 hash buckets, got 1"),
        ({"buckets": 0}, "expected at least 2 hash buckets, got 0"),
        ({"dim": 0}, "expected an embedding width of at least 1, got 0"),
        ({"combiner": "max"}, "expected a combiner of ('mean', 'sum'), got 'max'"),
    ],
)
def test_a_hashed_feature_out_of_range_is_rejected_with_its_column(changes, message):
    with pytest.raises(ConfigError, match=re.escape(f"column 'item': {message}")):
        hashed(**changes)


@pytest.mark.parametrize("changes", [{"dtype": "string"}, {"buckets": 2}, {"dim": 1}, {"combiner": "sum"}])
def test_a_hashed_feature_at_the_edge_of_its_range_is_accepted(changes):
    assert dataclasses.asdict(hashed(**changes)).items() >= changes.items()


def test_a_hashed_feature_holds_one_value_and_takes_the_mean_by_default():
    assert hashed().length is None
    assert hashed().combiner == "mean" and hashed().combiner in COMBINERS
    assert MISSING_BUCKET == 0


@pytest.mark.parametrize(
    "length, mean, std, message",
    [
        (None, (0.0, 0.0), (1.0, 1.0), "expected 1 means and deviations, got 2 and 2"),
        (None, (), (), "expected 1 means and deviations, got 0 and 0"),
        (None, (0.0,), (), "expected 1 means and deviations, got 1 and 0"),
        (3, (0.0,) * 3, (1.0,) * 2, "expected 3 means and deviations, got 3 and 2"),
        (3, (0.0,) * 2, (1.0,) * 3, "expected 3 means and deviations, got 2 and 3"),
        (1, (0.0,) * 2, (1.0,) * 2, "expected 1 means and deviations, got 2 and 2"),
    ],
)
def test_a_numeric_feature_needs_one_mean_and_deviation_an_element(length, mean, std, message):
    with pytest.raises(ConfigError, match=re.escape(f"column 'price': {message}")):
        NumericFeature("price", mean, std, length)


@pytest.mark.parametrize("length, width", [(None, 1), (1, 1), (3, 3)])
def test_a_numeric_feature_holds_its_statistics(length, width):
    feature = NumericFeature("price", (2.0,) * width, (0.0,) * width, length)
    assert (feature.mean, feature.std, feature.length) == ((2.0,) * width, (0.0,) * width, length)


def test_features_of_one_table_share_it():
    features = (hashed("item"), hashed("last_items", length=5, combiner="sum"))
    assert embedding_tables(features) == (Table("items", rows=100, dim=16),)


def test_tables_come_in_order_of_first_use_and_numbers_have_none():
    user = hashed("user", table="users", salt="users", buckets=50, dim=8)
    features = iter((NumericFeature("price", (0.0,), (1.0,)), user, hashed("item"), hashed("last_item")))
    assert embedding_tables(features) == (Table("users", 50, 8), Table("items", 100, 16))


def test_no_features_have_no_tables():
    assert embedding_tables(()) == ()


@pytest.mark.parametrize(
    "changes, got",
    [
        ({"buckets": 99}, "(99, 'items', 16)"),
        ({"salt": "other"}, "(100, 'other', 16)"),
        ({"dim": 8}, "(100, 'items', 8)"),
    ],
)
def test_features_of_one_table_that_differ_are_rejected(changes, got):
    message = (
        "table 'items': columns 'item' and 'last_item' share it, so expected the same (buckets, salt, dim), "
        f"got (100, 'items', 16) and {got}"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        embedding_tables((hashed("item"), hashed("last_item", **changes)))


@pytest.mark.parametrize(
    "value, field", [(hashed(), "buckets"), (NumericFeature("x", (0.0,), (1.0,)), "mean"), (Table("t", 2, 1), "rows")]
)
def test_features_and_tables_are_frozen(value, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, 7)
