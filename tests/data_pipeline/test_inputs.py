"""Which columns become features, and how they are refused."""

import re

import pytest

from data_pipeline.inputs import select_features
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.statistics import SplitStatistics
from hm3_tf.errors import ConfigError, DataError
from hm3_tf.features import HashedFeature, NumericFeature

SCHEMA = Schema(
    (
        Column("time", "int64", "ignored"),
        Column("user", "int64", "group", hashing=Hashing(100, salt="pepper")),
        Column("session", "string", "group"),
        Column("item", "string", hashing=Hashing(50, table="items")),
        Column("history", "string", shape=VARIABLE, max_length=7, hashing=Hashing(50, table="items", combiner="sum")),
        Column("price", "float"),
        Column("vector", "float", shape=(2,)),
        Column("importance", "float", "weight"),
        Column("truth_pctr", "float", "truth"),
        Column("click", "int64", "behavior"),
    ),
    (Level("click", ("click",)),),
)
FIGURES = {"price": {"mean": [3.0], "std": [2.0]}, "vector": {"mean": [1.0, 2.0], "std": [0.5, 0.0]}}
TRAIN = SplitStatistics(("click",), {"0": 1, "1": 1}, {}, FIGURES)


def select(**options):
    return {feature.name: feature for feature in select_features(SCHEMA, TRAIN, **options)}


def test_all_inputs_of_the_schema_are_features_in_its_order():
    assert list(select()) == ["user", "item", "history", "price", "vector"]


def test_a_hashed_feature_has_what_the_schema_declares():
    features = select(default_dim=8)
    assert features["user"] == HashedFeature("user", "int64", 100, "pepper", "user", 8)
    assert features["item"] == HashedFeature("item", "string", 50, "items", "items", 8)
    assert features["history"] == HashedFeature("history", "string", 50, "items", "items", 8, length=7, combiner="sum")


def test_a_numeric_feature_has_the_moments_of_the_training_split():
    assert select()["price"] == NumericFeature("price", (3.0,), (2.0,))
    assert select()["vector"] == NumericFeature("vector", (1.0, 2.0), (0.5, 0.0), length=2)


def test_named_features_keep_the_order_of_the_schema():
    assert list(select(names=["price", "user"])) == ["user", "price"]


def test_width_and_buckets_of_a_table_are_overridden_for_all_its_columns():
    features = select(default_dim=8, dims={"items": 32}, buckets={"items": 9, "user": 77})
    assert (features["item"].dim, features["history"].dim, features["user"].dim) == (32, 32, 8)
    assert (features["item"].buckets, features["history"].buckets, features["user"].buckets) == (9, 9, 77)


@pytest.mark.parametrize(
    "name, why",
    [
        ("click", "is a label, which an input would leak"),
        ("truth_pctr", "is the simulator's truth, which an input would leak"),
        ("importance", "weighs rows"),
        ("time", "has the role 'ignored'"),
        ("session", "has the role 'group'"),
    ],
)
def test_a_column_that_is_no_input_is_refused_with_the_reason(name, why):
    message = (
        f"model.features: expected an input column, but {name!r} {why}; inputs: user, item, history, price, vector"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        select(names=["user", name])


def test_an_unknown_feature_is_refused_with_a_hint():
    message = "model.features: expected a column of the schema, got 'pryce'; did you mean 'price'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        select(names=["pryce"])


@pytest.mark.parametrize("option, field", [("dims", "embedding_dims"), ("buckets", "hash_buckets")])
@pytest.mark.parametrize(
    "names, table, hint", [((), "item", "did you mean 'items'?"), (["user"], "items", "known: user")]
)
def test_an_override_of_a_table_that_the_model_does_not_have_is_refused(option, field, names, table, hint):
    message = f"model.{field}: expected an embedding table of the model, got {table!r}; {hint}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        select(names=names, **{option: {table: 8}})


def test_a_schema_without_inputs_is_refused():
    schema = Schema((Column("click", "int64", "behavior"),), (Level("click", ("click",)),))
    with pytest.raises(ConfigError, match="expected at least one input: a column of role 'feature', got none"):
        select_features(schema, TRAIN)


def test_a_numeric_feature_without_statistics_is_refused():
    with pytest.raises(DataError, match="expected the mean and deviation of column 'price', found none"):
        select_features(SCHEMA, SplitStatistics(("click",), {}, {}, {}), names=["price"])


def test_too_few_buckets_are_refused_by_column():
    with pytest.raises(ConfigError, match="column 'user': expected at least 2 hash buckets, got 1"):
        select(buckets={"user": 1})


def test_columns_of_one_table_that_disagree_are_refused():
    first, second = (Column(name, "int64", hashing=Hashing(n, table="t")) for name, n in (("a", 10), ("b", 20)))
    schema = Schema((first, second, Column("click", "int64", "behavior")), (Level("click", ("click",)),))
    with pytest.raises(ConfigError, match="table 't': columns 'a' and 'b' share it"):
        select_features(schema, TRAIN)
