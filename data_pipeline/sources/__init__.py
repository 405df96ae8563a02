"""Raw logs that the converter reads, one module a layout."""

import importlib
from typing import TYPE_CHECKING

from data_pipeline.schema import Schema
from hm3_tf.errors import Hm3Error, UsageError, did_you_mean

if TYPE_CHECKING:
    from data_pipeline.sources.base import Source

TABLES = ("parquet", "csv")
"""Layouts of tables of one's own, which need a schema or behaviors."""

EVENT_LOGS = ("taobao", "rees46", "retailrocket", "otto")
"""Layouts of events without impressions, which need the extra `join`."""

PUBLIC_LOGS = (
    *("kuairand", "aliccp", "aliexpress", "wechat2021", "jdsearch", "jd_hup", "tenrec", "trendyol"),
    *EVENT_LOGS,
)
"""Layouts that have a schema of their own; docs/datasets.md says what is in each."""

SOURCES = (*TABLES, *PUBLIC_LOGS)


def open_source(
    name: str, path: str, schema: Schema | None = None, behaviors: str = "", groups: str = "", ignored: str = ""
) -> "Source":
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
      UsageError: There is no such source, neither schema nor behaviors are given where one is needed, or one of them is
        where the log has its own.
      DataError: There is no file of the layout.
      Hm3Error: A package of the extra `join` is not installed.
    """
    if name not in SOURCES:
        raise UsageError(f"--source: expected one of {SOURCES}, got {name!r}; {did_you_mean(name, SOURCES)}")
    try:
        module = importlib.import_module(f"data_pipeline.sources.{name}")
    except ModuleNotFoundError as error:
        if error.name != "duckdb":
            raise
        raise Hm3Error(
            f"--source={name}: expected the packages of the extra 'join', but duckdb is not installed; pip install "
            "'hm3-tf[join]'"
        ) from error
    if name in PUBLIC_LOGS:
        if schema is not None or behaviors or groups or ignored:
            raise UsageError(
                f"--source={name}: expected no --schema, --behaviors, --groups or --ignore: it has its own"
            )
        return module.open_source(path)
    if schema is None and not behaviors:
        raise UsageError(
            f"--source={name}: expected --schema=schema.json or --behaviors=click,...,purchase, got neither"
        )
    return module.open_source(path, schema, behaviors, groups, ignored)
