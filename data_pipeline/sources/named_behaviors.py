"""The schema of a table whose behaviors are named: their levels, and the columns that are left."""

from collections.abc import Sequence

import pyarrow as pa

from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from hm3_tf.errors import UsageError, did_you_mean

_DEFAULT_MAX_LENGTH = 50


def parse_behaviors(text: str) -> tuple[Level, ...]:
    """Returns the levels of `--behaviors`.

    >>> [level.any_of for level in parse_behaviors("click,d_ma=cart|wish,purchase")]
    [('click',), ('cart', 'wish'), ('purchase',)]

    Args:
      text: Such as `click,cart,purchase`, or with merged columns `click,d_ma=cart|wish,purchase`; in order, the first a gate.

    Returns:
      The levels.

    Raises:
      UsageError: A name is empty.
    """
    levels: list[Level] = []
    for item in text.split(","):
        name, _, columns = item.strip().partition("=")
        names = tuple(column.strip() for column in (columns or name).split("|"))
        if not name or not all(names):
            raise UsageError(f"--behaviors: expected name or name=column|column between commas, got {text!r}")
        levels.append(Level(name, names, gate=not levels))
    return tuple(levels)


def infer_schema(
    arrow: pa.Schema, levels: tuple[Level, ...], groups: Sequence[str], ignored: Sequence[str]
) -> tuple[Schema, frozenset[str]]:
    """Returns the schema of a table whose behaviors are named: all other columns are features.

    Args:
      arrow: The table's columns and types.
      levels: The behavior levels.
      groups: Columns of role `group`; they are inputs too.
      ignored: Columns that are kept and not read.

    Returns:
      (schema, names of the columns whose number of buckets is a placeholder).

    Raises:
      UsageError: A named column is not in the table.
    """
    behaviors = {name for level in levels for name in level.any_of}
    for name in [*sorted(behaviors), *groups, *ignored]:
        if name not in arrow.names:
            raise UsageError(
                f"--behaviors, --groups, --ignore, --split_column: expected a column of the log, got {name!r}; "
                f"{did_you_mean(name, arrow.names)}"
            )
    columns, inferred = [], set()
    for field in arrow:
        if field.name in groups and _is_float(field.type):
            raise UsageError(
                f"--groups: expected a column of ids or text, got {field.name!r} of type {field.type}; if these are ids, which "
                "nulls made floats, say int64 in a --schema"
            )
        if not _is_carried(field.type):
            if field.name in ignored:
                continue  # cannot be written, and nobody reads it
            raise UsageError(
                f"column {field.name!r}: expected numbers, text, dates, or lists of numbers or text, got {field.type}; add it "
                "to --ignore"
            )
        role = "behavior" if field.name in behaviors else "group" if field.name in groups else "feature"
        column = _infer_column(field, "ignored" if field.name in ignored else role)
        columns.append(column)
        if column.hashing is not None:
            inferred.add(column.name)
    return Schema(tuple(columns), levels), frozenset(inferred)


def _is_list(arrow: pa.DataType) -> bool:
    return any(test(arrow) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_carried(arrow: pa.DataType) -> bool:
    """Whether a column of a type can be written as int64, float or string."""
    value = arrow.value_type if _is_list(arrow) else arrow
    return not (pa.types.is_nested(value) and not pa.types.is_dictionary(value))


def _is_float(arrow: pa.DataType) -> bool:
    return pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)


def _infer_column(field: pa.Field, role: str) -> Column:
    is_list = _is_list(field.type)
    value = field.type.value_type if is_list else field.type
    if pa.types.is_integer(value) or pa.types.is_boolean(value):
        dtype = "int64"
    elif _is_float(value):
        dtype = "float"
    else:
        dtype = "string"
        role = "ignored" if pa.types.is_temporal(value) else role
    if is_list and dtype == "float":
        role = "ignored"
    hashing = Hashing(buckets=2) if role in ("feature", "group") and dtype != "float" else None
    max_length = _DEFAULT_MAX_LENGTH if is_list and hashing else None
    return Column(field.name, dtype, role, VARIABLE if is_list else (), max_length, hashing)
