"""Raw rows in the types of the schema: what is not of them is an error, or a bad record that is left out."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.bad_records import BadRecord, BadRecords, by_halves
from data_pipeline.records import arrow_type, list_lengths
from data_pipeline.schema import Column, Schema
from data_pipeline.sources.batch import SourceBatch
from hm3_tf.errors import DataError, did_you_mean

_NOT_CAST = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


def typed_rows(batch: SourceBatch, schema: Schema, bad: BadRecords | None) -> tuple[pa.RecordBatch, np.ndarray | None]:
    """Returns the columns of the schema in their `arrow_type`, checked.

    Args:
      batch: The raw rows.
      schema: The columns.
      bad: Takes the rows with a value that is not of its type, NaN, infinite, a negative weight or a list of another length;
        None where the first one is an error.

    Returns:
      (the rows that are left; which these are, bool [rows of the batch], or None where it is all).

    Raises:
      DataError: A column is missing, or a row is bad and `bad` does not take it.
    """
    checker = _Checker(batch, bad is not None)
    rows = pa.RecordBatch.from_pydict({column.name: checker.typed(column) for column in schema.columns})
    if bad is None or not checker.reasons:
        return rows, None
    kept = np.ones(rows.num_rows, bool)
    for row, reason in sorted(checker.reasons.items()):
        bad.add(BadRecord(batch.file, "row", batch.number(row), reason))
        kept[row] = False
    return rows.filter(pa.array(kept)), kept


def ruled_rows(
    batch: SourceBatch, rules: Sequence[Callable[[pa.RecordBatch, int], np.ndarray]], bad: BadRecords | None
) -> tuple[SourceBatch, list[np.ndarray]]:
    """Returns what rules say of raw rows, each of [rows].

    Args:
      batch: The raw rows.
      rules: The rules, of rows and the number of the first of them in the batch. Where one refuses rows those after it are
        not asked, until the rows are found.
      bad: Takes the rows that a rule refuses; None where that is an error.

    Returns:
      (the rows that are left, what each rule says of them).

    Raises:
      DataError: A rule refuses a row, and `bad` does not take it.
    """

    def apply(start: int, stop: int) -> list[np.ndarray]:
        rows = batch.rows.slice(start, stop - start)
        return [rule(rows, start) for rule in rules]

    if bad is None:
        return batch, apply(0, batch.rows.num_rows)
    kept, said = np.ones(batch.rows.num_rows, bool), []
    for start, stop, result in by_halves(0, batch.rows.num_rows, apply, (DataError,)):
        if isinstance(result, Exception):
            kept[start:stop] = False
            bad.add(BadRecord(batch.file, "row", batch.number(start), str(result)))
        else:
            said.append(result)
    batch = batch if kept.all() else batch.filter(kept)
    return batch, [np.concatenate(parts) for parts in zip(*said)] if said else apply(0, 0)


class _Checker:
    """Checks the columns of a raw batch.

    Args:
      batch: The batch.
      collects: Whether bad rows are collected; else the first is an error.

    Attributes:
      reasons: {row of the batch: what is wrong with it}.
    """

    def __init__(self, batch: SourceBatch, collects: bool) -> None:
        self._batch, self._collects = batch, collects
        self.reasons: dict[int, str] = {}

    def typed(self, column: Column) -> pa.Array:
        """Returns a column in its `arrow_type`; what stands in bad rows does not matter."""
        names = self._batch.rows.schema.names
        if column.name not in names:
            raise DataError(
                f"{self._batch.file}: expected the column {column.name!r} of the schema, found none; "
                f"{did_you_mean(column.name, names)}"
            )
        array = self._cast(column, self._batch.rows.column(column.name))
        if column.dtype == "float" and column.role != "ignored":
            self._check_finite(column, array)
        if column.role == "weight":
            self._check_weights(column, array)
        if column.shape and column.shape[0] is not None:
            self._check_lengths(column, array)
        return array

    def _cast(self, column: Column, raw: pa.Array) -> pa.Array:
        target = arrow_type(column)
        if raw.type == target:
            return raw
        try:
            return pc.cast(_castable(raw, target), target)
        except _NOT_CAST as error:
            if self._collects:
                return self._cast_by_halves(column, raw)
            batch = self._batch
            raise DataError(
                f"{batch.file}: column {column.name!r}: expected {column.dtype} as the schema says, got {raw.type} in rows "
                f"{batch.number(0)} to {batch.number(len(raw) - 1)} ({error}); mend the schema or the log"
            ) from error

    def _cast_by_halves(self, column: Column, raw: pa.Array) -> pa.Array:
        target = arrow_type(column)

        def cast(start: int, stop: int) -> pa.Array:
            return pc.cast(_castable(raw.slice(start, stop - start), target), target)

        parts = []
        for start, stop, part in by_halves(0, len(raw), cast, _NOT_CAST):
            if isinstance(part, Exception):
                got = f"{raw.type} {raw[start].as_py()!r:.80}"
                self._refuse(
                    start, f"column {column.name!r}: expected {column.dtype} as the schema says, got {got}", ""
                )
                part = pa.nulls(stop - start, target)
            parts.append(part)
        return pa.concat_arrays(parts)

    def _refuse(self, row: int, reason: str, remedy: str) -> None:
        """Collects a bad row, or raises the error of it."""
        if not self._collects:
            raise DataError(f"{self._batch.file}: row {self._batch.number(row)}: {reason}{remedy}")
        self.reasons.setdefault(row, reason)

    def _check_finite(self, column: Column, array: pa.Array) -> None:
        flat = array.flatten() if column.shape else array
        bad = pc.fill_null(pc.invert(pc.is_finite(flat)), False).to_numpy(zero_copy_only=False)
        if not bad.any():
            return
        places = np.flatnonzero(bad)
        rows = places
        if column.shape:
            rows = np.searchsorted(np.cumsum(list_lengths(array)), places, side="right")
        for place, row in zip(places.tolist(), rows.tolist()):
            self._refuse(
                row,
                f"column {column.name!r}: expected a finite number, or null for a missing one, got {flat[place].as_py()}",
                "; mend the log, or give the column the role 'ignored'",
            )

    def _check_weights(self, column: Column, array: pa.Array) -> None:
        negative = pc.fill_null(pc.less(array, 0), False).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(negative).tolist():
            got = array[row].as_py()
            self._refuse(row, f"column {column.name!r}: expected a weight of at least 0, got {got}", "; mend the log")

    def _check_lengths(self, column: Column, array: pa.Array) -> None:
        lengths = list_lengths(array)
        for row in np.flatnonzero(lengths != column.shape[0]).tolist():
            expected = f"expected {column.shape[0]} values as the schema says"
            self._refuse(row, f"column {column.name!r}: {expected}, got {lengths[row]}", "")


def _castable(raw: pa.Array, target: pa.DataType) -> pa.Array:
    """Casts numbers to text before bytes, and integers to double before float: Arrow does not go there in one step."""
    if pa.types.is_binary(target) and not _is_text(raw.type):
        return pc.cast(raw, pa.string())
    if pa.types.is_int64(target) and pa.types.is_uint64(raw.type):
        return raw.view(pa.int64())  # ids are hashed by their bits
    if pa.types.is_float32(target) and pa.types.is_integer(raw.type):
        return pc.cast(raw, pa.float64(), safe=False)
    return raw


def _is_text(arrow: pa.DataType) -> bool:
    tests = (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(arrow) for test in tests)
