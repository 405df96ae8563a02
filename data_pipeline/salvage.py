"""The sound part of a damaged split: every record is checked once, before an epoch is planned, and bad ones leave the index.

All workers, and a run that resumes, find the same records, and so plan the same epochs. A bad record ends nothing: the next
one follows by its length, or where that is corrupt too, at the next byte offset that `index.json` names.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.bad_records import BadRecord, BadRecords, by_halves
from data_pipeline.index import (
    FRAMING,
    HEADER,
    INDEX_FILE,
    SplitIndex,
    empty_split,
    find_shards,
    join_blocks,
    packed_blocks,
    row_blocks,
    stored_index,
)
from data_pipeline.read import read_fault
from data_pipeline.records import BLOCK_ROWS, PARSERS, ROWS_KEY
from data_pipeline.schema import Column, Schema
from hm3_tf.errors import DataError

_LOGGER = logging.getLogger(__name__)
_BAD_COLUMNS = (tf.errors.InvalidArgumentError, UnicodeDecodeError)  # the latter of a message that quotes the record
_CHECKED_TOGETHER = {"packed": 1, "row": BLOCK_ROWS}  # records: a packed one has as many rows as its own lists say


def sound_index(folder: str, schema: Schema, bad: BadRecords) -> SplitIndex:
    """Returns the index of the sound records of a split, each of which is read and parsed once.

    A record is sound if its checksums are right and it holds the columns of the schema. Of a split without damage the index
    is the one that `load_index` returns.

    Args:
      folder: Folder of `*.tfrecord` shards, with or without an `index.json`.
      schema: The columns; those of role `ignored` are not checked.
      bad: Takes the records that are not sound.

    Returns:
      The index.

    Raises:
      DataError: There is no shard or no sound record, a shard is compressed, or more records are bad than `bad` takes.
    """
    storage.open_file_system(folder)
    known = _known_index(folder, bad)
    files = known.files if known else find_shards(folder)
    record_format = known.record_format if known else _detect_format(files)
    check = _checker(record_format, [column for column in schema.columns if column.role != "ignored"])
    shards = known.shards() if known else [None] * len(files)
    salvaged = [_Salvage(file, record_format, check, shard, bad) for file, shard in zip(files, shards)]
    index = SplitIndex(
        record_format,
        tuple(files),
        tuple(shard.size for shard in salvaged),
        join_blocks([shard.blocks() for shard in salvaged]),
    )
    if known and index.rows + bad.rows != known.rows and all(record.rows is not None for record in bad.records):
        _LOGGER.warning(
            "%s/%s tells of %d rows, its shards have %d; read as they are", folder, INDEX_FILE, known.rows, index.rows
        )
    if index.rows == 0:
        raise empty_split(folder)
    return index


def _known_index(folder: str, bad: BadRecords) -> SplitIndex | None:
    try:
        return stored_index(folder)
    except DataError as error:
        bad.add(BadRecord(storage.join(folder, INDEX_FILE), "byte offset", 0, f"not used: {error}", records=1, rows=0))
        return None


def _detect_format(files: Sequence[str]) -> str:
    """Returns the format of the first record that is an Example."""
    for file in files:
        for _, records in _walk(file, _size(file), "packed", (), lambda *lost: None):
            try:
                features = tf.io.parse_example(records, {ROWS_KEY: tf.io.VarLenFeature(tf.int64)})
                return "packed" if len(features[ROWS_KEY].values) else "row"
            except _BAD_COLUMNS:
                continue
    return "row"


_Check = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _checker(record_format: str, columns: Sequence[Column]) -> _Check:
    """Returns a function of records, string [n], that returns their (bytes, rows), and fails if one does not hold the columns."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def check(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = PARSERS[record_format](records, columns)
        with tf.control_dependencies(list(parsed.values())):
            sizes = tf.strings.length(records)
        rows = tf.shape(next(iter(parsed.values())))[0] // tf.maximum(tf.size(records), 1)
        return tf.cast(sizes, tf.int64), tf.fill(tf.shape(sizes), tf.cast(rows, tf.int64))

    return check


def _size(file: str) -> int:
    return tf.io.gfile.stat(file).length if tf.io.gfile.exists(file) else 0


def _records(file: str, offset: int, batch: int) -> tf.data.Dataset:
    """Returns the records of a shard from a byte offset on, string [batch]."""

    def read(start: tf.Tensor) -> tf.data.Dataset:
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[file], compression_type="", buffer_size=262_144, byte_offsets=start[tf.newaxis]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))

    return tf.data.Dataset.from_tensors(tf.constant(offset, tf.int64)).flat_map(read).batch(batch)


_Lose = Callable[[int, int, str, int | None], None]
"""Is told of what is lost: its byte offset, that of what follows, the reason, and the records if their number is known."""


def _walk(
    file: str, size: int, record_format: str, places: Sequence[int], lose: _Lose
) -> Iterator[tuple[int, tf.Tensor]]:
    """Yields the records with right checksums, as (byte offset, string [n]); offsets only grow.

    Args:
      file: The shard.
      size: Its bytes.
      record_format: `packed` or `row`.
      places: Byte offsets, in order, at which a record is known to begin, and at last the known end of the shard.
      lose: Is told of what lies between the records.
    """
    offset, end = 0, max([size, *places])
    while offset < end:
        fault = None
        for batch in dict.fromkeys((_CHECKED_TOGETHER[record_format], 1)):  # one by one up to the bad one
            try:
                for records in _records(file, offset, batch) if offset < size else ():
                    yield offset, records
                    offset += int(tf.reduce_sum(tf.strings.length(records) + FRAMING))
                break
            except tf.errors.DataLossError as error:
                fault = error.message
        if offset < end:
            found = re.search(r"corrupted record at (\d+)", fault or "")
            if found and int(found.group(1)) == offset + HEADER:  # the data: the length before it is right
                following, reason, count = _next_offset(file, offset), "a corrupt record", 1
            elif found:
                following = next((place for place in places if offset < place < size), end)
                reason, count = "a record with a corrupt length", None
            else:
                reason = "a cut-off record" if offset < size else f"the end of the file, {end:,} bytes were written"
                following, count = end, None
            lose(offset, following, reason, count)
            offset = following


def _next_offset(file: str, offset: int) -> int:
    """Returns where the record after the one at an offset begins."""
    with tf.io.gfile.GFile(file, "rb") as shard:
        shard.seek(offset)
        return offset + int.from_bytes(shard.read(8), "little") + FRAMING


class _Salvage:
    """Finds the sound records of a shard.

    Args:
      file: The shard.
      record_format: `packed` or `row`.
      check: See `_checker`.
      known: What `index.json` says of it, or None.
      bad: Takes what is lost.

    Attributes:
      size: Bytes of the shard.
    """

    def __init__(self, file: str, record_format: str, check: _Check, known: SplitIndex | None, bad: BadRecords) -> None:
        self.size = _size(file)
        self._file, self._format, self._check, self._bad = file, record_format, check, bad
        self._sound: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # byte offsets, bytes and rows of records
        self._places = _places(known) if known else {}
        self._passed: np.ndarray | None = np.zeros(2, np.int64)  # records and rows up to here; None where nobody knows

    def blocks(self) -> np.ndarray:
        """Returns the blocks of sound records, [blocks, 3] of byte offset, records, rows."""
        if not self._is_whole():
            for offset, records in _walk(self._file, self.size, self._format, [*self._places], self._lose):
                self._take(offset, records)
        if not self._sound:
            return np.empty((0, 3), np.int64)
        offsets, sizes, rows = (np.concatenate(parts) for parts in zip(*self._sound))
        cuts = np.flatnonzero(offsets[1:] != (offsets + sizes + FRAMING)[:-1]) + 1
        stretches = zip(*(np.split(array, cuts) for array in (offsets, sizes, rows)))
        return np.concatenate([self._blocks_of(*stretch) for stretch in stretches])

    def _blocks_of(self, offsets: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        blocks = row_blocks(sizes) if self._format == "row" else packed_blocks(sizes, rows)
        return blocks + offsets[0] * np.array([1, 0, 0])

    def _is_whole(self) -> bool:
        """Whether every record is sound, and nothing is known to be missing: in one pass, many records at a time."""
        if not self.size:
            return not self._places
        records = _records(self._file, 0, _CHECKED_TOGETHER[self._format])
        try:
            parts = list(records.map(self._check, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator())
        except (tf.errors.DataLossError, *_BAD_COLUMNS):
            return False
        if not parts:
            return False
        sizes, rows = (np.concatenate(part) for part in zip(*parts))
        ends = np.cumsum(sizes + FRAMING)
        if ends[-1] != max([self.size, *self._places]):
            return False
        self._sound = [(ends - sizes - FRAMING, sizes, rows)]
        return True

    def _take(self, offset: int, records: tf.Tensor) -> None:
        """Takes records with right checksums, but for those without the columns of the schema."""
        sizes = tf.strings.length(records).numpy() + FRAMING
        offsets = offset + np.cumsum(sizes) - sizes

        def check(start: int, stop: int) -> list[np.ndarray]:
            return [part.numpy() for part in self._check(records[start:stop])]

        for start, stop, result in by_halves(0, len(sizes), check, _BAD_COLUMNS):
            if isinstance(result, Exception):
                self._lose(offsets[start], offsets[start] + sizes[start], _reason(result), 1)
            else:
                self._sound.append((offsets[start:stop], *result))
                if self._passed is not None:
                    self._passed = self._passed + [stop - start, result[1].sum()]

    def _lose(self, start: int, stop: int, reason: str, records: int | None) -> None:
        lost = np.ones(2, np.int64) if records == 1 and self._format == "row" else None
        after = self._places.get(int(stop))
        if after is not None and self._passed is not None and (after >= self._passed).all():
            lost = after - self._passed
        if lost is None:
            record = BadRecord(self._file, "byte offset", int(start), reason, records, None)
        else:
            record = BadRecord(self._file, "byte offset", int(start), reason, *map(int, lost))
        self._passed = after if after is not None else None if lost is None else self._passed + lost
        self._bad.add(record)


def _reason(error: Exception) -> str:
    """Returns what a record has in place of the columns of the schema."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        return read_fault(error) or error.message.partition("\n")[0]
    return "no tf.train.Example"


def _places(known: SplitIndex) -> dict[int, np.ndarray]:
    """Returns {byte offset at which a block begins, or the shard ends: records and rows before it}."""
    before = np.concatenate([[[0, 0]], np.cumsum(known.blocks[:, 2:], axis=0)])
    return dict(zip([*known.blocks[:, 1].tolist(), *known.file_bytes], before))
