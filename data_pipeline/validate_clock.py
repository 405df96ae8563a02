"""Which columns of a log say when its rows were."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from data_pipeline.schema import SCALAR, Column, Schema
from data_pipeline.times import Times
from hm3_tf.errors import UsageError

TIME_COLUMNS = ("date", "date_", "day", "dt", "timestamp", "event_time", "time", "ts", "ts_hour", "time_ms", "datetime")
_STAMP = re.compile(r"(.*_)?(time|timestamp|ts|date|datetime)(_(s|ms|us|ns))?")


@dataclasses.dataclass(frozen=True)
class Clock:
    """What says when each row was.

    Attributes:
      column: The column.
      numbered: Whether its numbers below 100,000 are days; else they are no times.
    """

    column: Column
    numbered: bool = False

    def times(self, values: np.ndarray) -> Times:
        """Returns the times of rows by the column's values, see `Times.of`."""
        return Times.of(values, self.numbered)


def likely_clocks(columns: Iterable[Column]) -> list[Clock]:
    """Returns the columns whose names are those of `TIME_COLUMNS`, in their order; their values tell whether they are times."""
    found = {column.name: column for column in columns if _may_hold_times(column)}
    return [Clock(found[known]) for known in TIME_COLUMNS if known in found]


def named_clock(schema: Schema, name: str) -> Clock:
    """Returns the column that a person named: it may number the days.

    Raises:
      UsageError: The column is not one of times.
      ConfigError: There is none of that name.
    """
    column = schema.column(name, "--time_column")
    if not _may_hold_times(column):
        raise UsageError(
            f"--time_column: expected a column of one int64 or string a row, got {name!r} of dtype {column.dtype} and shape "
            f"{list(column.shape)}; name a column of dates or timestamps"
        )
    return Clock(column, numbered=True)


def stamps(schema: Schema, clock: Clock | None) -> tuple[Column, ...]:
    """Returns the inputs whose names say that they hold times, other than the column of the rows' own."""
    own = clock.column if clock else None
    return tuple(c for c in schema.inputs if c != own and _may_hold_times(c) and _STAMP.fullmatch(c.name.lower()))


def _may_hold_times(column: Column) -> bool:
    return column.dtype != "float" and column.shape == SCALAR and column.role not in ("behavior", "weight", "truth")
