"""Tables of impressions and of behavior events, checked and in the types of the join."""

import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.sources.base import SourceBatch, TableFiles
from hm3_tf.errors import DataError, UsageError, did_you_mean

TIME_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@dataclasses.dataclass(frozen=True)
class EventColumns:
    """Names of the columns that the tables are joined by, the same in both.

    Attributes:
      user: Integers or text.
      item: Integers or text.
      time: Timestamps, or integers in `time_unit`.
      behavior: Text; a column of events only.
      time_unit: One of `TIME_UNITS`, or None where times are timestamps.
    """

    user: str
    item: str
    time: str
    behavior: str
    time_unit: str | None = None


@dataclasses.dataclass(frozen=True)
class EventTable:
    """One of the two tables.

    Attributes:
      files: Its files.
      columns: Names of its columns.
      has_behavior: Whether its rows are events.
    """

    files: TableFiles
    columns: EventColumns
    has_behavior: bool

    @property
    def names(self) -> list[str]:
        """Names of the columns to join by."""
        keys = [self.columns.user, self.columns.item, self.columns.time]
        return [*keys, self.columns.behavior] if self.has_behavior else keys

    def fields(self) -> list[pa.Field]:
        """Returns the columns to join by as the files have them.

        Raises:
          DataError: One is missing, or is of a type that cannot be joined by.
          UsageError: Times are integers, and their unit is not named.
        """
        arrow = self.files.dataset().schema
        for name in self.names:
            if name not in arrow.names:
                raise DataError(
                    f"{self.files.path}: expected a column {name!r}, found none; {did_you_mean(name, arrow.names)}; see "
                    "--user_column, --item_column, --time_column, --behavior_column"
                )
        fields = [arrow.field(name) for name in self.names]
        user, item, time, *behavior = fields
        for field in (user, item):
            self._check(field, pa.types.is_integer(_plain(field.type)) or _is_text(field.type), "integers or text")
        self._check(time, pa.types.is_timestamp(time.type) or pa.types.is_integer(time.type), "timestamps or integers")
        if pa.types.is_integer(time.type) and self.columns.time_unit is None:
            raise UsageError(
                f"--time_unit: expected one of {tuple(TIME_UNITS)}, as column {time.name!r} of {self.files.path} has integers, "
                "got none"
            )
        for field in behavior:
            self._check(field, _is_text(field.type), "text")
        return fields

    def _check(self, field: pa.Field, is_right: bool, expected: str) -> None:
        if not is_right:
            raise DataError(
                f"{self.files.path}: expected {expected} in column {field.name!r}, got {field.type}; cast the column"
            )

    def batches(self) -> Iterator[list[pa.Array]]:
        """Yields users, items (each int64 or string), times (int64 nanoseconds) and, of events, behaviors (string).

        Raises:
          DataError: A value is missing or out of range, or a file cannot be read.
        """
        for batch in self.files.batches(self.names):
            user, item, time, *behavior = (batch.rows.column(name) for name in self.names)
            try:
                keys = [_key(user), _key(item), self._nanoseconds(time), *map(_key, behavior)]
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{batch.file}: rows after {batch.first_row}: expected ids below 2^63 and times from 1678 to 2262 in the "
                    f"unit {self.columns.time_unit or time.type}, got: {error}; see --time_unit"
                ) from error
            for name, values in zip(self.names, keys):
                _require_values(batch, name, values)
            yield keys

    def _nanoseconds(self, times: pa.Array) -> pa.Array:
        if pa.types.is_timestamp(times.type):
            return pc.cast(pc.cast(times, pa.timestamp("ns", times.type.tz)), pa.int64())
        factor = TIME_UNITS[self.columns.time_unit or "ns"]
        return pc.multiply_checked(pc.cast(times, pa.int64()), pa.scalar(factor, pa.int64()))


def key_types(impressions: EventTable, events: EventTable) -> tuple[pa.DataType, pa.DataType]:
    """Returns the types of users and items, int64 or string.

    Args:
      impressions: Table of impressions.
      events: Table of events.

    Returns:
      The types.

    Raises:
      DataError: A column is missing or of a wrong type, or types of the two tables do not fit.
      UsageError: Times are integers, and their unit is not named.
    """
    pairs = list(zip(impressions.fields(), events.fields()))
    for shown, happened in pairs[:2]:
        if _key_type(shown) != _key_type(happened):
            raise _unlike(shown, happened, "integers in both tables, or text in both")
    shown, happened = pairs[2]
    zones = {field.type.tz is None for field in pairs[2] if pa.types.is_timestamp(field.type)}
    if len(zones) > 1:
        raise _unlike(shown, happened, "timestamps with a time zone in both tables, or without in both")
    return _key_type(pairs[0][0]), _key_type(pairs[1][0])


def _unlike(shown: pa.Field, happened: pa.Field, expected: str) -> DataError:
    return DataError(
        f"column {shown.name!r}: expected {expected}, got {shown.type} in impressions and {happened.type} in events; cast one"
    )


def _plain(arrow: pa.DataType) -> pa.DataType:
    return arrow.value_type if pa.types.is_dictionary(arrow) else arrow


def _is_text(arrow: pa.DataType) -> bool:
    return pa.types.is_string(_plain(arrow)) or pa.types.is_large_string(_plain(arrow))


def _key_type(field: pa.Field) -> pa.DataType:
    return pa.string() if _is_text(field.type) else pa.int64()


def _key(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.string() if _is_text(values.type) else pa.int64())


def _require_values(batch: SourceBatch, name: str, values: pa.Array) -> None:
    if values.null_count:
        row = batch.first_row + pc.index(pc.is_null(values), True).as_py()
        raise DataError(
            f"{batch.file}: row {row}: expected a value of column {name!r}, got null; leave such rows out before the join"
        )
