"""Impressions written beside their new columns: Parquet files with the rows of theirs, in the same order."""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources.base import TableFiles
from hm3_tf.errors import DataError


class NewColumns:
    """Columns for impressions, taken in batches of other sizes than they come in.

    Args:
      batches: An id, which is left out, and the columns, in the order of the impressions.
      path: The impressions', for errors.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch], path: str) -> None:
        self._batches, self._path = batches, path
        self._waiting: list[pa.RecordBatch] = []

    def take(self, rows: int) -> list[pa.ChunkedArray]:
        """Returns the columns of the next rows, one at least.

        Raises:
          DataError: There are not as many.
        """
        while sum(batch.num_rows for batch in self._waiting) < rows:
            self._waiting.append(self._next())
        table = pa.Table.from_batches(self._waiting)
        self._waiting = table.slice(rows).to_batches()
        return table.slice(0, rows).combine_chunks().columns[1:]

    def _next(self) -> pa.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            raise self._changed()
        return batch

    def check_end(self) -> None:
        """Checks that all were taken.

        Raises:
          DataError: Some are left.
        """
        if any(batch.num_rows for batch in itertools.chain(self._waiting, self._batches)):
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            f"{self._path}: expected the impressions to stay as they are during the join, but their number changed; join them "
            "again once they are written"
        )


def write_joined(path: str, impressions: TableFiles, columns: NewColumns, schema: pa.Schema) -> Iterator[pa.Table]:
    """Writes a file of impressions with their new columns, and yields what was written, a batch at a time.

    Args:
      path: The file.
      impressions: Their rows.
      columns: The new columns.
      schema: Of the columns of the impressions and the new ones.

    Yields:
      Rows.

    Raises:
      DataError: The impressions cannot be read, or are more than the new columns have.
    """
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for batch in impressions.batches():
            if batch.rows.num_rows:
                table = pa.table([*batch.rows.columns, *columns.take(batch.rows.num_rows)], schema=schema)
                file.write_table(table)
                yield table
