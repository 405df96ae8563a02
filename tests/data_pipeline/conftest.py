"""Small logs for the tests: tables written by hand as shards, as conversions, and as foreign records."""

import dataclasses
import itertools
import os

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data_pipeline import records
from data_pipeline.convert import convert
from data_pipeline.index import SplitIndex, load_index
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.sources.base import SourceBatch
from data_pipeline.split_rules import parse_split
from hm3_tf.features import HashedFeature, NumericFeature

HASHING = Hashing(buckets=1_000)
FIRST_ID = 2**53  # ids of rows start here: a float64 cannot tell neighbors apart
FRAMING = 16  # bytes of a TFRecord beside its data: 8 of length, 4 of its checksum, 4 of the data's checksum

COLUMNS = (
    Column("row_id", "int64", "ignored"),
    Column("user", "int64", "group", hashing=HASHING),
    Column("brand", "string", hashing=HASHING),
    Column("tags", "int64", shape=VARIABLE, max_length=3, hashing=HASHING),
    Column("price", "float"),
    Column("vector", "float", shape=(2,)),
    Column("importance", "float", "weight"),
    Column("click", "int64", "behavior"),
    Column("qa", "int64", "behavior"),
    Column("cart", "int64", "behavior"),
    Column("wish", "int64", "behavior"),
    Column("pay", "int64", "behavior"),
)
LEVELS = (
    Level("click", ("click",), gate=True),
    Level("d_mi", ("qa",)),
    Level("d_ma", ("cart", "wish")),
    Level("purchase", ("pay",)),
)
SCHEMA = Schema(COLUMNS, LEVELS)
FEATURES = (
    HashedFeature("user", "int64", 1_000, "user", "user", 4),
    HashedFeature("brand", "string", 1_000, "brand", "brand", 4),
    HashedFeature("tags", "int64", 1_000, "tags", "tags", 4, length=3),
    NumericFeature("price", (0.0,), (1.0,)),
    NumericFeature("vector", (0.0, 0.0), (1.0, 1.0), length=2),
)


def make_rows(rows, *, seed=0, nested=False):
    """Returns {column: list} of a log of `COLUMNS`; unless `nested`, labels break the hierarchy here and there."""
    rng = np.random.default_rng(seed)
    labels = {name: (rng.random(rows) < rate).astype(int) for name, rate in (("qa", 0.4), ("cart", 0.3), ("wish", 0.3))}
    labels |= {"click": (rng.random(rows) < 0.6).astype(int), "pay": (rng.random(rows) < 0.2).astype(int)}
    if nested:
        labels |= {name: label * labels["click"] for name, label in labels.items()}
    missing = rng.random((4, rows)) < 0.1
    lengths = rng.integers(0, 6, rows)
    return {
        "row_id": [FIRST_ID + i for i in range(rows)],
        "user": [None if gone else int(v) for gone, v in zip(missing[0], rng.integers(-(2**62), 2**62, rows))],
        "brand": [None if gone else f"märke {v}".encode() for gone, v in zip(missing[1], rng.integers(0, 9, rows))],
        "tags": [None if gone else list(range(i, i + n)) for i, (gone, n) in enumerate(zip(missing[2], lengths))],
        "price": [None if gone else float(np.float32(v)) for gone, v in zip(missing[3], rng.random(rows))],
        "vector": [[float(i), 0.5] for i in range(rows)],
        "importance": [0.25 + i % 3 for i in range(rows)],
        **{name: label.tolist() for name, label in labels.items()},
    }


def to_batch(rows, columns=COLUMNS):
    """Returns {column: list} as an Arrow batch in the types of the pipeline."""
    arrays = {column.name: pa.array(rows[column.name], records.arrow_type(column)) for column in columns}
    return pa.RecordBatch.from_pydict(arrays)


def write_index(folder, rows, *, columns=COLUMNS, files=1, block_rows=37, record_format="packed"):
    """Writes rows as shards of small blocks and returns their index, made here by counting bytes."""
    os.makedirs(folder, exist_ok=True)
    batch = to_batch(rows, columns)
    cuts = np.linspace(0, batch.num_rows, files + 1).astype(int)
    cuts[1:-1] += np.arange(files - 1) % 2  # files of unequal lengths
    cuts = np.maximum.accumulate(np.minimum(cuts, batch.num_rows))
    paths, blocks = [], []
    for shard, (start, stop) in enumerate(itertools.pairwise(cuts)):
        paths.append(f"{folder}/{shard}.tfrecord")
        offset = 0
        with tf.io.TFRecordWriter(paths[-1]) as file:
            for first in range(start, stop, block_rows):
                block = batch.slice(first, min(block_rows, stop - first))
                packed = record_format == "packed"
                written = [records.encode_packed(block, columns)] if packed else records.encode_rows(block, columns)
                for record in written:
                    file.write(record)
                blocks.append((shard, offset, len(written), block.num_rows))
                offset += sum(len(record) + FRAMING for record in written)
    sizes = tuple(os.path.getsize(path) for path in paths)
    return SplitIndex(record_format, tuple(paths), sizes, np.array(blocks, np.int64).reshape(-1, 4))


def read_stored(folder, columns):
    """Returns {column: array} of all rows of a split folder, without the reader under test."""
    index = load_index(str(folder))
    serialized = tf.constant([r for file in index.files for r in tf.data.TFRecordDataset(file).as_numpy_iterator()])
    return {name: value.numpy() for name, value in records.PARSERS[index.record_format](serialized, columns).items()}


def example(**values):
    """Returns a serialized Example of ints, floats or bytes, single or in lists."""
    feature = {}
    for name, value in values.items():
        value = value if isinstance(value, list) else [value]
        if value and isinstance(value[0], float):
            feature[name] = tf.train.Feature(float_list=tf.train.FloatList(value=value))
        elif value and isinstance(value[0], bytes):
            feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        else:
            feature[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_records(path, serialized):
    """Writes records as one TFRecord file, in a folder that is made, and returns its path as text."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in serialized:
            file.write(record)
    return str(path)


def flip_byte(path, offset):
    """Changes one byte of a file; its size stays."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """A raw log held in memory: batches of Arrow columns, numbered on from the first."""

    schema: Schema
    tables: tuple
    inferred: frozenset = frozenset()

    @property
    def origin(self):
        return repr(self.tables)

    def parts(self):
        return [self]

    def count_rows(self, bad=None):
        return sum(pa.RecordBatch.from_pydict(table).num_rows for table in self.tables)

    def batches(self, bad=None):
        first_row = 0
        for table in self.tables:
            rows = pa.RecordBatch.from_pydict(table)
            yield SourceBatch("memory.log", first_row, rows)
            first_row += rows.num_rows


def convert_rows(output, *tables, schema=SCHEMA, split="fraction:1,0,0", column="date", seed=0, **options):
    """Converts batches of raw columns to a data folder and returns the statistics."""
    source = MemorySource(schema, tables, options.pop("inferred", frozenset()))
    return convert(source, str(output), parse_split(split, column, seed), **options)


@pytest.fixture(scope="session")
def small_log(tmp_path_factory):
    """(rows, index) of a packed log of 611 rows in 3 files, labels against the hierarchy among them."""
    rows = make_rows(611)
    return rows, write_index(tmp_path_factory.mktemp("small"), rows, files=3)


@pytest.fixture
def converted(tmp_path):
    """(raw columns, data folder) of a converted log of 50 rows."""
    rows = make_rows(50, nested=True)
    convert_rows(tmp_path / "data", rows)
    return rows, tmp_path / "data"
