"""The sound part of a damaged split: every record is checked once, before an epoch is planned, and bad ones leave the index.

All workers, and a run that resumes, find the same records, and so plan the same epochs. A bad record ends nothing: the next
one follows by its length, or where that is corrupt too, at the next byte offset that `index.json` names.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence

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
_PARSED_TOGETHER = {"packed": 1, "row": BLOCK_ROWS}  # records: lists of packed ones must not make up for each other


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
    blocks = [_Salvage(file, record_format, check, shard, bad).blocks() for file, shard in zip(files, shards)]
    index = SplitIndex(record_format, tuple(files), tuple(map(_size, files)), join_blocks(blocks))
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
        for offset, sizes in _walk(file, (), lambda *lost: None):
            for start in (offset + np.cumsum(sizes) - sizes).tolist():
                try:
                    record = _read(file, start, 1)
                    rows = tf.io.parse_example(record, {ROWS_KEY: tf.io.VarLenFeature(tf.int64)})[ROWS_KEY].values
                    return "packed" if len(rows) else "row"
                except _BAD_COLUMNS:
                    continue
    return "row"


def _size(file: str) -> int:
    return tf.io.gfile.stat(file).length if tf.io.gfile.exists(file) else 0


def _records(file: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    """Returns the records of a shard from a byte offset on, string scalars."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=file[tf.newaxis], compression_type="", buffer_size=262_144, byte_offsets=offset[tf.newaxis]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


_PLACE = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64))
_COUNT = tf.TensorSpec([], tf.int64)


@tf.function(input_signature=[*_PLACE, _COUNT], autograph=False)
def _read(file: tf.Tensor, offset: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns `count` records of a shard, string [count]."""
    return _records(file, offset).take(count).batch(count).get_single_element()


@tf.function(input_signature=[*_PLACE, _COUNT], autograph=False)
def _sound_lengths(file: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the bytes of the data of the records with right checksums from an offset on, up to the first other one."""
    lengths = _records(file, offset).ignore_errors().batch(BLOCK_ROWS).map(tf.strings.length)
    none = tf.data.Dataset.from_tensors(tf.zeros([0], tf.int32))
    most_batches = size // FRAMING // BLOCK_ROWS + 2
    together = lengths.concatenate(none).padded_batch(most_batches, [None], tf.constant(-1)).get_single_element()
    return tf.cast(tf.boolean_mask(together, together >= 0), tf.int64)


_Check = Callable[[str, int, int], tf.Tensor]


def _checker(record_format: str, columns: Sequence[Column]) -> _Check:
    """Returns a function that takes file, byte offset and number of records, and returns the rows of each, int64 [records].

    It fails with one of `_BAD_COLUMNS` where a record does not hold the columns.
    """
    together = _PARSED_TOGETHER[record_format]

    def parse(records: tf.Tensor) -> tf.Tensor:
        columns_read = PARSERS[record_format](records, columns)
        with tf.control_dependencies(list(columns_read.values())):
            return tf.shape(next(iter(columns_read.values())), tf.int64)[0]

    @tf.function(input_signature=[*_PLACE, _COUNT], autograph=False)
    def check(file: tf.Tensor, offset: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        batches = _records(file, offset).take(count).batch(together)
        rows = batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(count).get_single_element()
        return rows if record_format == "packed" else tf.ones([count], tf.int64)

    return check


_Lose = Callable[[int, int, str, int | None], None]
"""Is told of what is lost: its byte offset, that of what follows, the reason, and the records if their number is known."""


def _walk(file: str, places: Collection[int], lose: _Lose) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the stretches of records with right checksums: (byte offset, bytes of each record with its framing).

    The offset grows with each turn, so that it comes to the end of any file.

    Args:
      file: The shard.
      places: Byte offsets, in order, at which a record is known to begin, and at last the known end of the shard.
      lose: Is told of what lies between the stretches.

    Raises:
      DataError: The file changes while it is read.
    """
    size = _size(file)
    offset, end = 0, max([size, *places])
    while offset < end:
        sizes = _sound_lengths(file, offset, size).numpy() + FRAMING if size else np.empty(0, np.int64)
        if len(sizes):
            yield offset, sizes
            offset += int(sizes.sum())
        if offset < end:
            corrupt = _corrupt_place(file, offset, size)
            if corrupt is None:
                following, count = end, None
                reason = "a cut-off record" if offset < size else f"the end of the file, of {end:,} bytes written"
            elif corrupt == offset + HEADER:  # the data: the length before it is right
                following, count, reason = _next_offset(file, offset), 1, "a corrupt record"
            else:
                following, count = next((place for place in places if offset < place < size), end), None
                reason = "a record with a corrupt length"
            lose(offset, following, reason, count)
            offset = following


def _corrupt_place(file: str, offset: int, size: int) -> int | None:
    """Returns the byte offset that TensorFlow calls corrupt in the record at `offset`, None if the record is cut off."""
    if offset + FRAMING > size:
        return None
    try:
        _read(file, offset, 1)
    except tf.errors.DataLossError as error:
        found = re.search(r"corrupted record at (\d+)", error.message)
        return int(found.group(1)) if found else None
    raise DataError(
        f"{file}: expected a shard that stays as it is, found a record at byte offset {offset} that changed"
    )


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
    """

    def __init__(self, file: str, record_format: str, check: _Check, known: SplitIndex | None, bad: BadRecords) -> None:
        self._file, self._format, self._check, self._bad = file, record_format, check, bad
        self._places = _places(known) if known else {}
        self._passed: np.ndarray | None = np.zeros(2, np.int64)  # records and rows up to here; None where nobody knows

    def blocks(self) -> np.ndarray:
        """Returns the blocks of sound records, [blocks, 3] of byte offset, records, rows."""
        walk = _walk(self._file, self._places, self._lose)
        found = [blocks for offset, sizes in walk for blocks in self._sound_blocks(offset, sizes)]
        return np.concatenate([np.empty((0, 3), np.int64), *found])

    def _sound_blocks(self, offset: int, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the blocks of records with right checksums, but for those without the columns of the schema."""
        offsets = offset + np.cumsum(sizes) - sizes

        def check(start: int, stop: int) -> np.ndarray:
            return self._check(self._file, int(offsets[start]), stop - start).numpy()

        rows = np.zeros_like(sizes)
        for start, stop, found in by_halves(0, len(sizes), check, _BAD_COLUMNS):
            if isinstance(found, Exception):
                self._lose(int(offsets[start]), int(offsets[start] + sizes[start]), _reason(found), 1)
                continue
            rows[start:stop] = found
            if self._passed is not None:
                self._passed = np.add(self._passed, (stop - start, found.sum()))
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows > 0)) + 1):
            if rows[run[0]]:
                lengths = sizes[run] - FRAMING
                blocks = row_blocks(lengths) if self._format == "row" else packed_blocks(lengths, rows[run])
                yield blocks + offsets[run[0]] * np.array([1, 0, 0])

    def _lose(self, start: int, stop: int, reason: str, records: int | None) -> None:
        """Adds what lies between two byte offsets to the bad records."""
        before, after = self._passed, self._places.get(stop)
        rows = records if self._format == "row" else None
        if before is not None and after is not None and (after >= before).all():
            records, rows = map(int, after - before)
        if before is not None and after is None and records is not None and rows is not None:
            after = np.add(before, (records, rows))
        self._passed = after
        self._bad.add(BadRecord(self._file, "byte offset", start, reason, records, rows))


def _reason(error: Exception) -> str:
    """Returns what a record has in place of the columns of the schema."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        return read_fault(error) or error.message.partition("\n")[0]
    return "no tf.train.Example"


def _places(known: SplitIndex) -> dict[int, np.ndarray]:
    """Returns {byte offset at which a block begins, or the shard ends: records and rows before it}."""
    before = np.concatenate([[[0, 0]], np.cumsum(known.blocks[:, 2:], axis=0)])
    return dict(zip([*known.blocks[:, 1].tolist(), *known.file_bytes], before))
