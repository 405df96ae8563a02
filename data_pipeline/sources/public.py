"""What the sources of public logs share: schemas of their own, batches made from raw ones, tables joined to them.

A source says how the raw columns of a batch become those of its schema, whole columns at a time.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.bad_records import BadRecord, BadRecords, by_halves
from data_pipeline.hashing import MISSING_INT64, MISSING_STRING
from data_pipeline.records import list_lengths
from data_pipeline.schema import Hashing, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from hm3_tf.errors import DataError

Maker = Callable[[SourceBatch], Mapping[str, Any]]
"""Makes the columns of a schema, Arrow or NumPy arrays of one length, from a raw batch."""

KEPT = "kept"
"""Name of what a maker makes beside them where a log leaves rows out: bool, of the same length."""

_NOT_SIZED = 2
_NOT_MADE = (KeyError, TypeError, pa.ArrowException)  # a DataError is of a table that is joined, and ends it


def made_rows(
    name: str, make: Maker, batch: SourceBatch, columns: Sequence[str], bad: BadRecords | None
) -> Iterator[tuple[SourceBatch, pa.RecordBatch]]:
    """Yields the parts of a raw batch without its bad rows, and the rows that are made of each.

    Args:
      name: The log, for errors.
      make: Makes the columns.
      batch: The raw batch.
      columns: Names of the columns.
      bad: Takes the raw rows that are not as the layout says; None where that is an error.

    Raises:
      DataError: A row is not as the layout says, and `bad` does not take it.
    """

    def made(start: int, stop: int) -> tuple[SourceBatch, pa.RecordBatch]:
        part = batch.part(start, stop)
        found = make(part)
        return part, pa.RecordBatch.from_pydict({column: _one_chunk(found[column]) for column in columns})

    if bad is None:
        try:
            yield made(0, batch.rows.num_rows)
        except (KeyError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{batch.file}: rows after {batch.first_row}: expected the {name} layout, got: {error}"
            ) from error
        return
    for start, _, result in by_halves(0, batch.rows.num_rows, made, _NOT_MADE):
        if isinstance(result, Exception):
            bad.add(BadRecord(batch.file, "row", batch.number(start), f"expected the {name} layout, got: {result}"))
        else:
            yield result


def from_data(table: str = "") -> Hashing:
    """Returns the hashing of a column whose number of buckets is set from the data; `table` as in `Hashing`."""
    return Hashing(buckets=_NOT_SIZED, table=table)


def sized_from_data(schema: Schema) -> frozenset[str]:
    """Returns the names of the columns that are hashed by `from_data`."""
    return frozenset(c.name for c in schema.inputs if c.hashing and c.hashing.buckets == _NOT_SIZED)


def release_origin(name: str, files: TableFiles) -> str:
    """Returns what the rows of a public log are made of, see `Source.origin`: its files, and those beside them."""
    dataset = files.dataset()
    folders = sorted({os.path.dirname(file) for file in dataset.files})
    paths = [os.path.join(folder, name) for folder in folders for name in sorted(storage.names_in(folder or "."))]
    beside = [(info.path, info.size, info.mtime_ns) for info in dataset.filesystem.get_file_info(paths)]
    return repr((name, files.origin, beside))


@dataclasses.dataclass(frozen=True)
class PublicLog:
    """A public log in its official layout.

    Attributes:
      name: What errors call it.
      files: Those of its raw rows.
      schema: Its columns and levels.
      open_maker: Reads the tables that are joined to the rows and returns what makes the columns of the schema.
      columns: The raw columns that are read.
      expands: Whether a raw row holds several impressions.
      left_out: What the rows are that `KEPT` leaves out; empty where there are none.
    """

    name: str
    files: TableFiles
    schema: Schema
    open_maker: Callable[[], Maker]
    columns: tuple[str, ...]
    expands: bool = False
    left_out: str = ""

    @property
    def inferred(self) -> frozenset[str]:
        """Names of the columns whose number of hash buckets is to be set from the data."""
        return sized_from_data(self.schema)

    @property
    def origin(self) -> str:
        """Says what the impressions are, see `release_origin`."""
        return release_origin(self.name, self.files)

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the impressions in the order of the files, numbered in each; `bad` takes raw rows that cannot be read.

        Raises:
          DataError: A file of the layout is missing or cannot be read.
        """
        make, done = self.open_maker(), dict[str, int]()
        names = [*(column.name for column in self.schema.columns), *([KEPT] if self.left_out else [])]
        for batch in self.files.batches(list(self.columns), bad):
            for part, rows in made_rows(self.name, make, batch, names, bad):
                first_row = done.setdefault(part.file, part.first_row)
                made = SourceBatch(part.file, first_row, rows) if self.expands else dataclasses.replace(part, rows=rows)
                yield self._kept(made) if self.left_out else made
                done[part.file] += rows.num_rows

    def _kept(self, batch: SourceBatch) -> SourceBatch:
        kept = batch.rows.column(KEPT).to_numpy(zero_copy_only=False)
        rows = batch.rows.drop_columns(KEPT)
        left_out = {self.left_out: int(np.count_nonzero(~kept))}
        return dataclasses.replace(dataclasses.replace(batch, rows=rows).filter(kept), left_out=left_out)

    def parts(self) -> list["PublicLog"]:
        """Returns the log in stretches, see `TableFiles`."""
        return [dataclasses.replace(self, files=files) for files in self.files.parts()]

    def count_rows(self, bad: BadRecords | None = None) -> int:
        """Returns the number of impressions that `batches` yields.

        Raises:
          DataError: As `batches`.
        """
        if self.expands or self.left_out or bad is not None:
            return sum(batch.rows.num_rows for batch in self.batches(bad))
        return self.files.count_rows()


def _one_chunk(array: Any) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else pa.array(array)


@dataclasses.dataclass(frozen=True)
class SideTable:
    """A table in memory whose rows are looked up by a key.

    Attributes:
      rows: The table.
      keys: Its keys in order: int64 or bytes [rows].
      places: The row of each key: int [rows].
    """

    rows: pa.Table
    keys: np.ndarray
    places: np.ndarray

    @classmethod
    def read(cls, files: TableFiles, key: str, columns: Iterable[str]) -> "SideTable":
        """Returns the `columns` of table files as a table, by the integer or text column `key`, which is one of them.

        Raises:
          DataError: A file or a column is missing or cannot be read, or there are no rows.
        """
        return cls.gather(files.path, key, (batch.rows for batch in files.batches(list(columns))))

    @classmethod
    def gather(cls, path: str, key: str, batches: Iterable[pa.RecordBatch]) -> "SideTable":
        """Returns the table of all batches, which come from `path`; see `read`."""
        try:
            found = list(batches)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: expected rows by {key!r}, got: {error}; mend the file") from error
        if not found:
            raise DataError(f"{path}: expected rows by {key!r}, found none; check the file")
        return cls.of(pa.Table.from_batches(found), key)

    @classmethod
    def of(cls, rows: pa.Table, key: str) -> "SideTable":
        """Returns a table of at least one row by its integer or text column `key`."""
        keys = _comparable(rows.column(key))
        places = np.argsort(keys, kind="stable")
        return cls(rows.combine_chunks(), keys[places], places)

    def look_up(self, keys: pa.Array) -> pa.Table:
        """Returns the first row of each key, of nulls where the table has none."""
        wanted = _comparable(keys)
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return self.rows.take(pa.array(self.places[found], mask=self.keys[found] != wanted))


def _comparable(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns keys as NumPy searches them fast: int64, or bytes of one width."""
    if pa.types.is_integer(keys.type):
        return pc.fill_null(pc.cast(keys, pa.int64()), MISSING_INT64).to_numpy()
    texts = pc.fill_null(pc.cast(keys, pa.binary()), MISSING_STRING)
    return texts.to_numpy(zero_copy_only=False).astype("S")


def row_names(batch: SourceBatch) -> pa.Array:
    """Returns a text for each row of a batch that no row of another file has, `file:number`."""
    return pc.binary_join_element_wise(os.path.basename(batch.file), pc.cast(batch.row_numbers, pa.string()), ":")


def windows(values: pa.Array, starts: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Returns a list of `lengths[i]` values from the place `starts[i]` on for each i."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.take(pa.array(places, pa.int64())))


def last_values(lists: pa.ListArray, most: int) -> pa.ListArray:
    """Returns the last `most` values of each list, in order; none of a null."""
    lengths = list_lengths(lists)
    kept = np.minimum(lengths, most)
    return windows(lists.flatten(), np.cumsum(lengths) - kept, kept)


def split_numbers(texts: pa.Array | pa.ChunkedArray, separator: str) -> Any:
    """Returns the int64 numbers between separators of each text; null where it is null or empty."""
    texts = pc.cast(texts, pa.string())
    present = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    return pc.cast(pc.split_pattern(present, separator), pa.list_(pa.int64()))


def whole_numbers(texts: pa.Array | pa.ChunkedArray) -> Any:
    """Returns the int64 of texts as `12` or `12.0`, without a float on the way; null where there is none."""
    return pc.cast(pc.replace_substring_regex(texts, r"\.0*$", ""), pa.int64())
