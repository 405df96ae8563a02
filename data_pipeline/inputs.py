"""Which columns of a log become features of the network, and how."""

from collections.abc import Mapping, Sequence

from data_pipeline.schema import Column, Schema
from data_pipeline.statistics import SplitStatistics, numeric_moments
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.features import Feature, HashedFeature, NumericFeature, embedding_tables


def select_features(
    schema: Schema,
    train: SplitStatistics,
    *,
    names: Sequence[str] = (),
    default_dim: int = 16,
    dims: Mapping[str, int] | None = None,
    buckets: Mapping[str, int] | None = None,
) -> tuple[Feature, ...]:
    """Returns the features of a model.

    Args:
      schema: The log's schema.
      train: Statistics of the training split.
      names: Columns to use; default all inputs of the schema.
      default_dim: Width of the embeddings.
      dims: {table: width} where it differs.
      buckets: {table: hash buckets} where they differ from the schema's.

    Returns:
      The features, in the order of the schema.

    Raises:
      ConfigError: A name is not an input of the schema, or no input is left.
    """
    dims, buckets = dims or {}, buckets or {}
    for name in names:
        _require_input(schema, name)
    columns = [column for column in schema.inputs if not names or column.name in names]
    if not columns:
        raise ConfigError("schema: expected at least one input: a column of role 'feature', got none")
    features = tuple(_feature(column, train, default_dim, dims, buckets) for column in columns)
    tables = [table.name for table in embedding_tables(features)]
    for field, overrides in (("embedding_dims", dims), ("hash_buckets", buckets)):
        for name in overrides:
            if name not in tables:
                raise ConfigError(
                    f"model.{field}: expected an embedding table of the model, got {name!r}; {did_you_mean(name, tables)}"
                )
    return features


def _require_input(schema: Schema, name: str) -> None:
    column = schema.column(name, where="model.features")
    if column.is_input:
        return
    inputs = [other.name for other in schema.inputs]
    why = {
        "behavior": "is a label, which an input would leak",
        "truth": "is the simulator's truth, which an input would leak",
        "weight": "weighs rows",
    }.get(column.role, f"has the role {column.role!r}")
    raise ConfigError(f"model.features: expected an input column, but {name!r} {why}; inputs: {', '.join(inputs)}")


def _feature(
    column: Column, train: SplitStatistics, default_dim: int, dims: Mapping[str, int], buckets: Mapping[str, int]
) -> Feature:
    hashing = column.hashing
    if hashing is None:
        return NumericFeature(column.name, *numeric_moments(column, train), length=column.length)
    table = hashing.table or column.name
    return HashedFeature(
        name=column.name,
        dtype=column.dtype,
        buckets=buckets.get(table, hashing.buckets),
        salt=hashing.salt or table,
        table=table,
        dim=dims.get(table, default_dim),
        length=column.length,
        combiner=hashing.combiner,
    )
