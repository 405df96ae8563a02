"""Logs in Parquet files, with a schema or with their behaviors named."""

from data_pipeline.schema import Schema
from data_pipeline.sources.base import Source, TableFiles, TableSource
from data_pipeline.sources.named_behaviors import infer_schema, parse_behaviors
from hm3_tf.errors import UsageError


def open_source(
    path: str, schema: Schema | None = None, behaviors: str = "", groups: str = "", ignored: str = ""
) -> Source:
    """Returns the log in Parquet files.

    Args:
      path: A file, a folder or a glob pattern.
      schema: Its schema, or None to take all columns but the named ones as features.
      behaviors: Without a schema: `--behaviors`.
      groups: Without a schema: columns of role `group`, between commas.
      ignored: Without a schema: columns that are no features, between commas.

    Returns:
      The source.

    Raises:
      DataError: There is no such file.
      UsageError: A named column is not in the log, or columns are named beside a schema.
    """
    return open_tables(TableFiles(path, "parquet"), schema, behaviors, groups, ignored)


def open_tables(files: TableFiles, schema: Schema | None, behaviors: str, groups: str, ignored: str) -> Source:
    """Returns the log in table files; see `open_source`."""
    if schema is not None:
        given = {"--behaviors": behaviors, "--groups": groups, "--ignore": ignored}
        beside = [flag for flag, text in given.items() if text]
        if beside:
            raise UsageError(
                f"expected --schema alone, got {', '.join(beside)} beside it; give the roles in the schema"
            )
        return TableSource(files, schema)
    levels = parse_behaviors(behaviors)
    names = [[name.strip() for name in text.split(",") if name.strip()] for text in (groups, ignored)]
    return TableSource(files, *infer_schema(files.dataset().schema, levels, *names))
