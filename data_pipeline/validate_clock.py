"""Which columns of a log say when its rows were."""

import re

from data_pipeline.schema import SCALAR, Column, Schema
from hm3_tf.errors import UsageError

TIME_COLUMNS = ("date", "date_", "day", "dt", "timestamp", "event_time", "time", "ts", "ts_hour", "time_ms", "datetime")
_STAMP = re.compile(r"(.*_)?(time|timestamp|ts|date|datetime)(_(s|ms|us|ns))?")


def time_column(schema: Schema, name: str | None = None) -> Column | None:
    """Returns the column that says when a row was.

    Args:
      schema: Schema of the log.
      name: Its name; default the first of `TIME_COLUMNS` that the log has.

    Raises:
      UsageError: The named column is not one of times.
      ConfigError: There is none of that name.
    """
    if name is None:
        found = {column.name: column for column in schema.columns if _may_hold_times(column)}
        return next((found[known] for known in TIME_COLUMNS if known in found), None)
    column = schema.column(name, "--time_column")
    if not _may_hold_times(column):
        raise UsageError(
            f"--time_column: expected a column of one int64 or string a row, got {name!r} of dtype {column.dtype} and shape "
            f"{list(column.shape)}; name a column of dates or timestamps"
        )
    return column


def stamps(schema: Schema, clock: Column | None) -> tuple[Column, ...]:
    """Returns the inputs whose names say that they hold times, other than the column of the rows' own."""
    return tuple(c for c in schema.inputs if c != clock and _may_hold_times(c) and _STAMP.fullmatch(c.name.lower()))


def _may_hold_times(column: Column) -> bool:
    return column.dtype != "float" and column.shape == SCALAR and column.role not in ("behavior", "weight", "truth")
