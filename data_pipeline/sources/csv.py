"""Logs in CSV files with a header, with a schema or with their behaviors named."""

import pyarrow as pa

from data_pipeline.schema import SCALAR, Schema
from data_pipeline.sources.base import Source, TableFiles
from data_pipeline.sources.parquet import open_tables

_CSV_TYPES = {"int64": pa.int64(), "string": pa.string(), "float": pa.float64()}


def open_source(
    path: str, schema: Schema | None = None, behaviors: str = "", groups: str = "", ignored: str = ""
) -> Source:
    """Returns the log in CSV files; arguments, result and errors as for `parquet`."""
    scalars = [column for column in schema.columns if column.shape == SCALAR] if schema else []
    types = tuple((column.name, _CSV_TYPES[column.dtype]) for column in scalars)
    return open_tables(TableFiles(path, "csv", types), schema, behaviors, groups, ignored)
