"""A simulated log as a source: its last day is the test split, the day before it validation."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.bad_records import BadRecords
from data_pipeline.records import ARROW_TYPES
from data_pipeline.schema import Column, Schema
from data_pipeline.simulate import CHUNK_ROWS, DAYS, SimulatedLog
from data_pipeline.sources.base import PART_ROWS, SourceBatch
from data_pipeline.split_rules import SplitRule, ThresholdRule

FIRST_DAY = np.datetime64("2022-05-01")


@dataclasses.dataclass(frozen=True)
class SimulatedSource:
    """A simulated log.

    Attributes:
      log: The log.
      inferred: Empty: the numbers of buckets are set.
      chunks: The chunks that are read; None: all.
    """

    log: SimulatedLog
    inferred: frozenset[str] = frozenset()
    chunks: range | None = None

    @property
    def schema(self) -> Schema:
        """The log's columns and levels."""
        return self.log.schema

    @property
    def origin(self) -> str:
        """Says which log this is."""
        return repr(self)

    def parts(self) -> list["SimulatedSource"]:
        """Returns the log in stretches of about `PART_ROWS` rows."""
        length = PART_ROWS // CHUNK_ROWS
        starts = range(0, self.log.chunks, length)
        return [dataclasses.replace(self, chunks=range(i, min(i + length, self.log.chunks))) for i in starts]

    def _chunks(self) -> range:
        return range(self.log.chunks) if self.chunks is None else self.chunks

    def count_rows(self, bad: BadRecords | None = None) -> int:
        """Returns the number of rows."""
        chunks = self._chunks()
        return min(chunks.stop * CHUNK_ROWS, self.log.rows) - chunks.start * CHUNK_ROWS

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the rows in order; none is bad."""
        chunks = self._chunks()
        for chunk, columns in zip(chunks, self.log.batches(chunks)):
            arrays = {column.name: _to_arrow(column, columns[column.name]) for column in self.schema.columns}
            rows = pa.RecordBatch.from_pydict(arrays)
            yield SourceBatch(f"simulated {self.log.world} log", chunk * CHUNK_ROWS, rows)


def _to_arrow(column: Column, values: Any) -> pa.Array:
    if isinstance(values, tuple):
        flat, lengths = values
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(flat, ARROW_TYPES[column.dtype]))
    if column.dtype == "string":
        return pa.array(values, mask=values == b"")
    return pa.array(values).cast(ARROW_TYPES[column.dtype])


def day_split() -> SplitRule:
    """Returns the rule that keeps the last day for test and the day before it for validation."""
    return ThresholdRule("day", DAYS - 2, DAYS - 1)


@dataclasses.dataclass(frozen=True)
class DatedDays:
    """Gives the days of the log dates, from `FIRST_DAY` on."""

    def __call__(self, rows: pa.RecordBatch) -> np.ndarray:
        """Returns the days: datetime64[D] [rows]."""
        return FIRST_DAY + rows.column("day").to_numpy()
