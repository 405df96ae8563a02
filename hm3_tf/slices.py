"""Figures of the rows that share a value of a column."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.schema import SCALAR, Schema
from hm3_tf.errors import ConfigError, Hm3Error
from hm3_tf.tally import Rows, Tally

MOST_VALUES = 50  # each costs some megabytes
_MISSING = "(missing)"


def check_columns(schema: Schema, names: Sequence[str]) -> None:
    """Checks the names of columns to slice by.

    Raises:
      ConfigError: One is not a column of the log, or not an id or category with one value a row.
    """
    for name in names:
        column = schema.column(name, "--slice")
        if column.dtype == "float" or column.shape != SCALAR:
            raise ConfigError(
                f"--slice: expected a column of ids or categories with one value a row, got {name!r} of dtype "
                f"{column.dtype!r} and shape {list(column.shape)}; name others, or bin it in the log"
            )


class Slices:
    """A tally for each value of some columns.

    Args:
      columns: The columns, which the rows carry.
      new_tally: Makes a tally.

    Attributes:
      columns: The columns.
    """

    def __init__(self, columns: Sequence[str], new_tally: Callable[[], Tally]) -> None:
        self.columns = tuple(columns)
        self._new_tally = new_tally
        self._tallies: dict[str, dict[Any, Tally]] = {name: {} for name in columns}

    def update(self, rows: Rows) -> None:
        """Adds rows.

        Raises:
          Hm3Error: A column has too many values.
        """
        for name, tallies in self._tallies.items():
            values, codes = np.unique(rows.carried[name], return_inverse=True)
            if len(tallies.keys() | set(values.tolist())) > MOST_VALUES:
                raise Hm3Error(
                    f"--slice: expected a column of at most {MOST_VALUES} values, got more in {name!r}; name a coarser one"
                )
            for code, value in enumerate(values.tolist()):
                if value not in tallies:
                    tallies[value] = self._new_tally()
                tallies[value].update(rows[codes == code])

    def result(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns {column: {value: figures as of `Tally.result`}}, values with most rows first."""
        return {name: _most_rows_first(tallies) for name, tallies in self._tallies.items()}


def _most_rows_first(tallies: dict[Any, Tally]) -> dict[str, dict[str, Any]]:
    results = {_text(value): tally.result() for value, tally in tallies.items()}
    return dict(sorted(results.items(), key=lambda item: -item[1]["rows"]))


def _text(value: int | bytes) -> str:
    """Returns a name that no other value of the column has: bytes that are no text, or the name of no value, are quoted."""
    if value in (MISSING_INT64, MISSING_STRING):
        return _MISSING
    if isinstance(value, int):
        return str(value)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return repr(value)
    return repr(value) if text == _MISSING else text
