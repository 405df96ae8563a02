"""Where the rows of a split lie: its shards cut into blocks, the unit in which rows are shuffled and shared out.

The converter writes the index beside the shards it wrote. Shards that came without one are scanned once, by record lengths
alone; the scan checks every record's checksum, so a corrupt log is found before the first step.
"""

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from data_pipeline import storage
from data_pipeline.records import BLOCK_ROWS, PARSERS, ROWS_KEY
from hm3_tf.errors import DataError

INDEX_FILE = "index.json"
FRAMING = 16  # bytes TFRecord adds to a record: length, its checksum, the data's checksum
HEADER = 12  # of these, before the data
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that was written.

    Attributes:
      file: Its name.
      bytes: Its size.
      sha256: The checksum of its bytes, in hexadecimal as `sha256sum` prints it.
      blocks: int64 [blocks, 3], see `packed_blocks`.
    """

    file: str
    bytes: int
    sha256: str
    blocks: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Returns what `index.json` says of it."""
        return {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "rows": int(self.blocks[:, 2].sum()),
            "blocks": self.blocks.tolist(),
        }


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """The shards of a split and the blocks in them.

    Attributes:
      record_format: `packed` or `row`.
      files: Paths of the shards.
      file_bytes: Their sizes.
      blocks: int64 [blocks, 4]: shard, byte offset of the first record, records, rows.
    """

    record_format: str
    files: tuple[str, ...]
    file_bytes: tuple[int, ...]
    blocks: np.ndarray

    @property
    def folder(self) -> str:
        """Folder of the shards."""
        return self.files[0].rsplit("/", 1)[0]

    @property
    def rows(self) -> int:
        """Number of impressions."""
        return int(self.blocks[:, 3].sum())

    def part(self, start: int, stop: int) -> "SplitIndex":
        """Returns the blocks whose first row is one of rows `start` to `stop` - 1 of the split."""
        first = np.cumsum(self.blocks[:, 3]) - self.blocks[:, 3]
        return dataclasses.replace(self, blocks=self.blocks[(first >= start) & (first < stop)])

    def shards(self) -> list["SplitIndex"]:
        """Returns each shard as an index of its own, in order; one may have no rows."""
        starts = np.searchsorted(self.blocks[:, 0], np.arange(1, len(self.files)))
        parts = zip(self.files, self.file_bytes, np.split(self.blocks, starts))
        return [
            dataclasses.replace(self, files=(file,), file_bytes=(size,), blocks=blocks * np.array([0, 1, 1, 1]))
            for file, size, blocks in parts
        ]

    def by_day(self) -> dict[str, "SplitIndex"]:
        """Returns the part of each day, in the order of the days, by the dates in the names of the shards.

        Returns:
          {day, as 2022-05-01: its blocks}.

        Raises:
          DataError: The name of a shard has no date.
        """
        days = [_DATE.search(file.rsplit("/", 1)[-1]) for file in self.files]
        if None in days:
            raise DataError(
                f"{self.files[days.index(None)]}: expected a date in the name of each shard, as 2022-05-01-00000.tfrecord, "
                "found none; convert the log with --shard_by_day, or name your own shards so"
            )
        owners = np.array([day.group() for day in days if day])[self.blocks[:, 0]]
        return {str(day): dataclasses.replace(self, blocks=self.blocks[owners == day]) for day in np.unique(owners)}

    @property
    def fingerprint(self) -> int:
        """Tells one log from another by the sizes of its shards and records, wherever they lie: an int64."""
        digest = hashlib.blake2b(json.dumps([self.record_format, self.file_bytes]).encode(), digest_size=8)
        digest.update(self.blocks.tobytes())
        return int.from_bytes(digest.digest(), "little", signed=True)


def row_blocks(record_bytes: np.ndarray) -> np.ndarray:
    """Returns the blocks of a shard of row records: [blocks, 3] of byte offset, records, rows."""
    offsets = np.concatenate([[0], np.cumsum(record_bytes + FRAMING)])[:-1]
    starts = np.arange(0, len(record_bytes), BLOCK_ROWS)
    counts = np.diff(np.append(starts, len(record_bytes)))
    return np.stack([offsets[starts], counts, counts], axis=-1).astype(np.int64).reshape(-1, 3)


def packed_blocks(record_bytes: np.ndarray, record_rows: np.ndarray) -> np.ndarray:
    """Returns the blocks of a shard of packed records, one a record: [blocks, 3] of byte offset, records, rows."""
    offsets = np.concatenate([[0], np.cumsum(record_bytes + FRAMING)])[:-1]
    return np.stack([offsets, np.ones_like(offsets), record_rows], axis=-1).astype(np.int64).reshape(-1, 3)


def to_json(record_format: str, shards: Iterable[Shard]) -> str:
    """Returns `index.json` for the shards of a folder."""
    index = {"record_format": record_format, "shards": [shard.as_dict() for shard in shards]}
    return json.dumps(index | {"checksum": _checksum(index)})


def _checksum(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps([index["record_format"], index["shards"]]).encode())


def load_index(folder: str) -> SplitIndex:
    """Returns the index of a split.

    Args:
      folder: Folder of `*.tfrecord` shards, with or without an `index.json`.

    Returns:
      The index.

    Raises:
      DataError: There is no shard or no row, a shard is not as long as the index says, or (where there is no index) a
        record is corrupt; file and byte offset are named.
    """
    storage.open_file_system(folder)
    index = stored_index(folder)
    if index is None:
        index = scan(find_shards(folder))
    else:
        check_sizes(index)
    if index.rows == 0:
        raise empty_split(folder)
    return index


def find_shards(folder: str) -> list[str]:
    """Returns the paths of the shards in a folder.

    Raises:
      DataError: There is none, or one is compressed.
    """
    files = sorted(tf.io.gfile.glob(storage.join(folder, "*.tfrecord*")))
    if not files:
        raise DataError(f"{folder}: expected *.tfrecord shards, found none; check --data_dir and the split")
    for file in files:
        if re.search(r"\.(gz|gzip|zlib)$", file):
            raise DataError(f"{file}: expected uncompressed TFRecord, found a compressed file; decompress it first")
    return files


def empty_split(folder: str) -> DataError:
    """Returns the error for a split without a row."""
    return DataError(f"{folder}: expected impressions, found an empty split; check the dates or fractions of --split")


def stored_index(folder: str) -> SplitIndex | None:
    """Returns what `index.json` says of a split, or None where there is none.

    Raises:
      DataError: The file is not an index, or not as it was written.
    """
    path = storage.join(folder, INDEX_FILE)
    if not tf.io.gfile.exists(path):
        return None
    try:
        data = json.loads(storage.read_text(path, "convert the log again"))
        record_format, shards = data["record_format"], data["shards"]
        if data.get("checksum") not in (None, _checksum(data)):
            raise ValueError("another checksum")
        files = tuple(storage.join(folder, shard["file"]) for shard in shards)
        sizes = tuple(int(shard["bytes"]) for shard in shards)
        blocks = join_blocks([shard["blocks"] for shard in shards])
        PARSERS[record_format]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected the index of a split, got {error!r}; convert the log again") from error
    return SplitIndex(record_format, files, sizes, blocks)


def check_sizes(index: SplitIndex) -> None:
    """Checks that the shards are as long as their index says.

    Raises:
      DataError: One is not there, or not as long.
    """
    for file, size in zip(index.files, index.file_bytes):
        found = tf.io.gfile.stat(file).length if tf.io.gfile.exists(file) else None
        if found != size:
            state = "no file" if found is None else f"{found} bytes (byte offset {min(found, size)} is where they part)"
            raise DataError(
                f"{file}: expected the {size} bytes that {INDEX_FILE} names, found {state}: the shard is truncated or "
                "was written by something else; convert the log again"
            )


def altered_shards(index: SplitIndex) -> list[str]:
    """Returns the shards whose bytes are not those that were written, by the SHA-256 of an `index.json` that has it."""
    path = storage.join(index.folder, INDEX_FILE)
    if not tf.io.gfile.exists(path):
        return []
    shards = json.loads(storage.read_text(path, "convert the log again"))["shards"]
    written = {storage.join(index.folder, shard["file"]): shard.get("sha256") for shard in shards}
    return [file for file in index.files if written.get(file) not in (None, storage.size_and_checksum(file)[1])]


def join_blocks(shards: Sequence[Sequence[Sequence[int]] | np.ndarray]) -> np.ndarray:
    """Returns the blocks of a split from those of its shards, [n, 3] each; those without rows are left out."""
    blocks = [np.asarray(shard, np.int64).reshape(-1, 3) for shard in shards]
    owners = np.repeat(np.arange(len(blocks)), [len(shard) for shard in blocks])
    joined = np.concatenate([owners[:, np.newaxis], np.concatenate([np.empty((0, 3), np.int64), *blocks])], axis=1)
    return joined[joined[:, 3] > 0]


def scan(files: Sequence[str]) -> SplitIndex:
    """Returns the index of shards that came without one, reading every record once.

    Args:
      files: Paths of uncompressed TFRecord shards, all of one record format.

    Returns:
      The index.

    Raises:
      DataError: A record is corrupt or cut off.
    """
    record_format = _detect_format(files)
    shards, sizes = [], []
    for file in files:
        record_bytes, record_rows = _scan_file(file, record_format)
        shards.append(row_blocks(record_bytes) if record_format == "row" else packed_blocks(record_bytes, record_rows))
        sizes.append(tf.io.gfile.stat(file).length)
    return SplitIndex(record_format, tuple(files), tuple(sizes), join_blocks(shards))


def _detect_format(files: Sequence[str]) -> str:
    for file in files:
        for record in _checked_records(file, batch=1, limit=1):
            try:
                features = tf.train.Example.FromString(record.numpy()[0]).features.feature
            except DecodeError as error:
                raise DataError(f"{file}: expected records that are tf.train.Examples, found: {error}") from error
            return "packed" if ROWS_KEY in features else "row"
    return "row"


def _scan_file(file: str, record_format: str) -> tuple[np.ndarray, np.ndarray]:
    lengths, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for records in _checked_records(file):
        lengths.append(tf.strings.length(records).numpy().astype(np.int64))
        if record_format == "packed":
            rows.append(_record_rows(file, records))
    sizes = np.concatenate(lengths)
    end = int(np.sum(sizes + FRAMING))
    if end != tf.io.gfile.stat(file).length:  # TensorFlow takes a cut within a record's length for the end
        raise _corrupt_at(file, f"byte offset {end}")
    return sizes, np.concatenate(rows)


def _record_rows(file: str, records: tf.Tensor) -> np.ndarray:
    try:
        return tf.io.parse_example(records, {ROWS_KEY: tf.io.FixedLenFeature([], tf.int64)})[ROWS_KEY].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"{file}: expected packed records as in the first shard, found one without {ROWS_KEY!r}; keep shards of "
            "different record formats in folders of their own"
        ) from error


def _checked_records(file: str, batch: int = BLOCK_ROWS, limit: int = -1) -> Iterator[tf.Tensor]:
    """Yields the records of a file, string [batch]; names file and offset where one is corrupt."""
    try:
        yield from tf.data.TFRecordDataset(file).take(limit).batch(batch)
    except tf.errors.DataLossError as error:
        raise corrupt_record(file, error) from error


def corrupt_record(file: str, error: tf.errors.DataLossError) -> DataError:
    """Returns the error for a record of `file` that TensorFlow found corrupt, with its byte offset."""
    offset = re.search(r"at (\d+)", error.message)
    return _corrupt_at(file, f"byte offset {offset.group(1)}" if offset else "an unknown offset")


def _corrupt_at(file: str, where: str) -> DataError:
    return DataError(
        f"{file}: expected TFRecord data, found a corrupt or cut-off record at {where}; restore the file from its "
        "source, convert the log again, or take the shard out of the folder"
    )


def find_corruption(index: SplitIndex) -> DataError | None:
    """Returns the error for the first corrupt record of a split, or None where every record is sound."""
    try:
        for file in index.files:
            _scan_file(file, index.record_format)
    except DataError as error:
        return error
    return None
