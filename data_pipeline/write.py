"""TFRecord shards with their index, from Arrow batches."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data_pipeline import index, storage
from data_pipeline.index import Shard
from data_pipeline.records import BLOCK_ROWS, RECORD_FORMATS, encode_packed, encode_rows
from data_pipeline.schema import Column
from hm3_tf.errors import ConfigError, Hm3Error, did_you_mean

SHARD_ROWS = 262_144


def check_record_format(record_format: str) -> None:
    """Checks the name of a record format.

    Args:
      record_format: `packed` or `row`.

    Raises:
      ConfigError: It is neither.
    """
    if record_format not in RECORD_FORMATS:
        raise ConfigError(
            f"--record_format: expected one of {RECORD_FORMATS}, got {record_format!r}; "
            f"{did_you_mean(record_format, RECORD_FORMATS)}"
        )


def write_index(folder: str, record_format: str, shards: Sequence[Shard]) -> None:
    """Writes the index of a split's shards."""
    storage.write_text(storage.join(folder, index.INDEX_FILE), index.to_json(record_format, shards))


class SplitWriter:
    """Writes the rows of one split, in the order they come, as shards of full blocks; each day can have shards of its own.

    Args:
      folder: Folder to write into; it exists.
      columns: The columns to write.
      record_format: `packed` or `row`.
      shard_rows: Rows of a shard.
      name: What the names of the shards begin with; other writers may write into the folder under other names.
    """

    def __init__(
        self,
        folder: str,
        columns: Sequence[Column],
        record_format: str = "packed",
        shard_rows: int = SHARD_ROWS,
        name: str = "part",
    ) -> None:
        self._folder, self._columns, self._format = folder, columns, record_format
        self._shard_rows, self._name = shard_rows, name
        self._writers: dict[str, _ShardWriter] = {}

    def write(self, batch: pa.RecordBatch, days: np.ndarray | None = None) -> None:
        """Adds rows.

        Args:
          batch: The rows, columns in their `arrow_type`.
          days: Their days, datetime64[D] [rows], which begin the names of the shards (`2022-05-01-part-00000.tfrecord`); None
            where all go into the same ones (`part-00000.tfrecord`).
        """
        if days is None:
            self._writer(self._name).write(batch)
            return
        for day in np.unique(days):
            self._writer(f"{day}-{self._name}").write(batch.filter(pa.array(days == day)))

    def _writer(self, name: str) -> "_ShardWriter":
        if name not in self._writers:
            self._writers[name] = _ShardWriter(
                storage.join(self._folder, name), self._columns, self._format, self._shard_rows
            )
        return self._writers[name]

    def finish(self) -> list[Shard]:
        """Writes what is left, and returns the shards in the order of the days, for an index of them."""
        return [shard for name in sorted(self._writers) for shard in self._writers[name].finish()]


class _ShardWriter:
    """Writes rows, in the order they come, as shards of full blocks whose paths begin with `prefix`."""

    def __init__(self, prefix: str, columns: Sequence[Column], record_format: str, shard_rows: int) -> None:
        self._prefix, self._columns, self._format = prefix, columns, record_format
        self._shard_rows = shard_rows
        self._waiting: list[pa.RecordBatch] = []
        self._shards: list[Shard] = []
        self._file: tf.io.TFRecordWriter | None = None
        self._record_bytes: list[int] = []
        self._record_rows: list[int] = []

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._waiting.append(batch)
        if sum(waiting.num_rows for waiting in self._waiting) >= BLOCK_ROWS:
            self._write_blocks(BLOCK_ROWS)

    def finish(self) -> list[Shard]:
        """Writes what is left, and returns the shards."""
        self._write_blocks(1)
        self._finish_shard()
        return self._shards

    def _write_blocks(self, least_rows: int) -> None:
        """Writes waiting rows as blocks while at least `least_rows` wait."""
        if not self._waiting:
            return
        rows = pa.Table.from_batches(self._waiting).combine_chunks()
        start = 0
        while rows.num_rows - start >= least_rows:
            block = rows.slice(start, BLOCK_ROWS)
            self._write_block(block.to_batches()[0])
            start += block.num_rows
        self._waiting = rows.slice(start).to_batches() if start < rows.num_rows else []

    def _write_block(self, block: pa.RecordBatch) -> None:
        if self._file is None:
            self._path = f"{self._prefix}-{len(self._shards):05d}.tfrecord"
            self._file = tf.io.TFRecordWriter(self._path)
        packed = self._format == "packed"
        records = [encode_packed(block, self._columns)] if packed else encode_rows(block, self._columns)
        for record in records:
            self._file.write(record)
            self._record_bytes.append(len(record))
            self._record_rows.append(block.num_rows if packed else 1)
        if sum(self._record_rows) >= self._shard_rows:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        sizes, rows = np.array(self._record_bytes), np.array(self._record_rows)
        blocks = index.row_blocks(sizes) if self._format == "row" else index.packed_blocks(sizes, rows)
        size, checksum = storage.size_and_checksum(self._path)
        if size != sizes.sum() + index.FRAMING * len(sizes):
            raise Hm3Error(
                f"{self._path}: expected the {sizes.sum() + index.FRAMING * len(sizes)} bytes that were written, found {size}; "
                "see that nothing else writes there, and convert the log again"
            )
        self._shards.append(Shard(self._path.rsplit("/", 1)[-1], size, checksum, blocks))
        self._record_bytes, self._record_rows = [], []
