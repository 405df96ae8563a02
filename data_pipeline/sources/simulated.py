"""A simulated log as a source: its last day is the test split, the day before it validation."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.bad_records import BadRecords
from data_pipeline.records import ARROW_TYPES
from data_pipeline.schema import Column, Schema
from data_pipeline.simulate import DAYS, SimulatedLog
from data_pipeline.sources.base import SourceBatch
from data_pipeline.split_rules import DayRule, SplitRule, threshold_rule

FIRST_DAY = np.datetime64("2022-05-01")


@dataclasses.dataclass(frozen=True)
class SimulatedSource:
    """A simulated log.

    Attributes:
      log: The log.
      inferred: Empty: the numbers of buckets are set.
    """

    log: SimulatedLog
    inferred: frozenset[str] = frozenset()

    @property
    def schema(self) -> Schema:
        """The log's columns and levels."""
        return self.log.schema

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the rows in order; none is bad."""
        first_row = 0
        for columns in self.log.batches():
            arrays = {column.name: _to_arrow(column, columns[column.name]) for column in self.schema.columns}
            rows = pa.RecordBatch.from_pydict(arrays)
            yield SourceBatch(f"simulated {self.log.world} log", first_row, rows)
            first_row += rows.num_rows


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
    return threshold_rule("day", DAYS - 2, DAYS - 1)


def dated_days() -> DayRule:
    """Returns the rule that gives the days of the log dates, from `FIRST_DAY` on."""
    return lambda rows: FIRST_DAY + rows.column("day").to_numpy()
