"""A data folder: `schema.json`, `statistics.json` and the shards of each split."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from data_pipeline import labels as label_rules
from data_pipeline import schema as schemas
from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.bad_records import BadRecords
from data_pipeline.index import SplitIndex, find_corruption, load_index
from data_pipeline.read import Reader, read_fault, read_records
from data_pipeline.salvage import sound_index
from data_pipeline.schema import Schema
from hm3_tf.errors import DataError, did_you_mean
from hm3_tf.progress import Progress

SCHEMA_FILE = "schema.json"
STATISTICS_FILE = "statistics.json"
_BLOCKS_LOOKED_AT = 8
_DTYPES = {"int64_list": "int64", "bytes_list": "string", "float_list": "float", None: ""}
_STATISTICS_BATCH = 16_384


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """A converted log, or foreign TFRecord shards beside a hand-written schema.

    Attributes:
      path: The folder.
      schema: Its schema.
      max_bad_records: Bad records of a split that are skipped, see `sound_index`; None where the first one is an error.
    """

    path: str
    schema: Schema
    max_bad_records: int | None = None

    @classmethod
    def open(cls, path: str, max_bad_records: int | None = None) -> "DataFolder":
        """Returns the folder at a path.

        Args:
          path: Local path or URL.
          max_bad_records: See the attribute.

        Returns:
          The folder.

        Raises:
          DataError: There is no `schema.json`.
          ConfigError: It is not a schema.
        """
        storage.open_file_system(path)
        file = storage.join(path, SCHEMA_FILE)
        text = storage.read_text(
            file, "make the folder with hm3 convert or hm3 simulate, or write a schema for your shards"
        )
        return cls(path, schemas.from_json(text, file), max_bad_records)

    def has_split(self, name: str) -> bool:
        """Whether the folder has shards of a split."""
        return bool(tf.io.gfile.glob(storage.join(self.path, name, "*.tfrecord*")))

    def split(self, name: str) -> SplitIndex:
        """Returns the index of a split.

        Args:
          name: `train`, `validation`, `test` or another folder of shards.

        Returns:
          The index.

        Raises:
          DataError: The split is missing or empty, a shard is corrupt, or too much of them is.
        """
        folder = storage.join(self.path, name)
        if self.max_bad_records is None:
            return load_index(folder)
        bad = BadRecords(self.max_bad_records)
        index = sound_index(folder, self.schema, bad)
        bad.tell()
        return index

    def statistics(self) -> dict[str, stats.SplitStatistics]:
        """Returns the statistics of the splits: of `statistics.json`, or counted from the training shards.

        Raises:
          DataError: The file does not hold what `statistics.to_json` writes.
        """
        stored = self.stored_statistics()
        return {"train": self.count(self.split("train"))} if stored is None else stored

    def stored_statistics(self) -> dict[str, stats.SplitStatistics] | None:
        """Returns the statistics of `statistics.json`, or None where there is none.

        Raises:
          DataError: The file does not hold what `statistics.to_json` writes.
        """
        path = storage.join(self.path, STATISTICS_FILE)
        if not tf.io.gfile.exists(path):
            return None
        text = storage.read_text(path, "convert the log again")
        return stats.from_json(text, [level.name for level in self.schema.levels], path)

    def count(self, index: SplitIndex) -> stats.SplitStatistics:
        """Returns the statistics of a split or a part of one, which is read for them.

        Raises:
          DataError: A shard is corrupt, or its records do not hold what the schema says.
        """
        builder = stats.StatisticsBuilder(self.schema)
        names = tuple(column.name for column in self.schema.columns if column.role not in ("ignored", "truth"))
        reader = Reader(index, self.schema, (), sample_weights=False, carry=names)
        check_records(reader)
        with Progress("count", index.rows) as progress, explained_read_errors(index):
            for _, _, weights, columns in reader.ordered_dataset(_STATISTICS_BATCH):
                real = weights.numpy() > 0
                rows = {name: column.numpy()[real] for name, column in columns.items()}
                labels, violations = label_rules.nest(
                    self.schema.levels, label_rules.raw_flags(self.schema.levels, rows)
                )
                builder.add_rows(rows, labels)
                builder.add_violations(violations)
                progress.advance(int(np.count_nonzero(real)))
        return builder.result()


def found_columns(index: SplitIndex) -> dict[str, tuple[str, str]]:
    """Returns the columns that the records of a split have, by a look at a few blocks from all over it.

    Args:
      index: The split.

    Returns:
      {name: (dtype, or "" where it never has a value; file that says so)}.

    Raises:
      DataError: A block cannot be read.
    """
    columns: dict[str, tuple[str, str]] = {}
    chosen = np.unique(np.linspace(0, len(index.blocks) - 1, _BLOCKS_LOOKED_AT).astype(np.int64))
    blocks = index.blocks[chosen]
    files = np.repeat(np.array(index.files)[blocks[:, 0]], blocks[:, 2])  # of the records
    with explained_read_errors(index):
        for file, record in zip(files.tolist(), read_records(tf.constant(index.files), tf.constant(blocks)).numpy()):
            for name, feature in tf.train.Example.FromString(record).features.feature.items():
                if not columns.get(name, ("",))[0]:
                    columns[name] = (_DTYPES[feature.WhichOneof("kind")], file)
    return columns


def check_records(reader: Reader) -> dict[str, tuple[str, str]]:
    """Checks a few blocks of a split for the columns that are read, before anything is trained on it.

    Args:
      reader: Reader of the split.

    Returns:
      The columns that the blocks have, see `found_columns`.

    Raises:
      DataError: A column is in none of the records, or holds values of another dtype.
    """
    found = found_columns(reader.index)
    for column in reader.columns:
        if column.name not in found:
            raise DataError(
                f"{reader.index.folder}: expected the column {column.name!r} of the schema, found none in the blocks looked "
                f"at; {did_you_mean(column.name, found)}; mend the schema, or give the column the role 'ignored'"
            )
        dtype, file = found[column.name]
        if dtype not in ("", column.dtype):
            raise DataError(
                f"{file}: column {column.name!r}: expected {column.dtype} as the schema says, found {dtype}; mend the schema"
            )
    return found


@contextlib.contextmanager
def explained_read_errors(index: SplitIndex) -> Iterator[None]:
    """Turns TensorFlow's reading errors within the block into one line with file, offset and column.

    Args:
      index: The split that is read.

    Raises:
      DataError: A record was corrupt, or did not hold what the schema says.
    """
    folder = index.folder
    try:
        yield
    except tf.errors.DataLossError as error:
        raise find_corruption(index) or DataError(f"{folder}: {error.message}") from error
    except tf.errors.NotFoundError as error:
        gone = [file for file in index.files if not tf.io.gfile.exists(file)]
        if not gone:
            raise
        raise DataError(f"{gone[0]}: expected the shard that was there at the start, found none; restore it") from error
    except (UnicodeDecodeError, DecodeError) as error:  # of a message that quotes the record, or of the record
        raise DataError(
            f"{folder}: expected records that are tf.train.Examples, found one that is not; convert the log again"
        ) from error
    except tf.errors.InvalidArgumentError as error:
        fault = read_fault(error)
        if fault is None:
            raise
        raise DataError(
            f"{folder}: expected records as the schema says, but {fault}; mend the schema or the log"
        ) from error
