"""Raw logs that the converter reads, one module a layout."""

import importlib

from data_pipeline.schema import Schema
from data_pipeline.sources.base import FileSource
from hm3_tf.errors import UsageError, did_you_mean

SOURCES = ("parquet", "csv", "kuairand")


def open_source(
    name: str, path: str, schema: Schema | None = None, behaviors: str = "", groups: str = "", ignored: str = ""
) -> FileSource:
    """Returns a raw log.

    Args:
      name: One of `SOURCES`.
      path: Where it lies.
      schema: Its schema; public logs have one of their own.
      behaviors: Without a schema: the behavior columns, see `parse_behaviors`.
      groups: Without a schema: columns of role `group`, between commas.
      ignored: Without a schema: columns that are no features, between commas.

    Returns:
      The source.

    Raises:
      UsageError: There is no such source, or neither schema nor behaviors are given where one is needed.
    """
    if name not in SOURCES:
        raise UsageError(f"--source: expected one of {SOURCES}, got {name!r}; {did_you_mean(name, SOURCES)}")
    if name in ("parquet", "csv") and schema is None and not behaviors:
        raise UsageError(
            f"--source={name}: expected --schema=schema.json or --behaviors=click,...,purchase, got neither"
        )
    return importlib.import_module(f"data_pipeline.sources.{name}").open_source(
        path, schema, behaviors, groups, ignored
    )
