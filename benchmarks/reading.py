"""Rows a second from TFRecord: packed records, row records parsed in batches, row records parsed one by one.

python benchmarks/reading.py

26 id columns (Zipf 1.1 over 100,000 ids each) and two labels; hashed, shuffled, in batches of 4,096. Ratios within one run.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
import time

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data_pipeline.hashing import network_inputs
from data_pipeline.index import load_index
from data_pipeline.read import Reader
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.write import SplitWriter
from hm3_tf.features import HashedFeature

COLUMNS, IDS, BATCH = 26, 100_000, 4096
ROWS = {"packed": 1_000_000, "row": 200_000, "row, one by one": 50_000}
SCHEMA = Schema(
    (
        *(Column(f"c{i}", "int64", hashing=Hashing(IDS)) for i in range(COLUMNS)),
        *(Column(name, "int64", "behavior") for name in ("click", "buy")),
    ),
    (Level("click", ("click",), gate=True), Level("purchase", ("buy",))),
)
FEATURES = [HashedFeature(f"c{i}", "int64", IDS, f"c{i}", f"c{i}", 16) for i in range(COLUMNS)]


def write(folder: str, record_format: str, rows: int) -> None:
    """Writes a random log."""
    rng = np.random.default_rng(0)
    cdf = np.cumsum((np.arange(IDS) + 1.0) ** -1.1)
    ids = np.searchsorted(cdf / cdf[-1], rng.random((COLUMNS, rows)))
    arrays = {f"c{i}": pa.array(column) for i, column in enumerate(ids)}
    arrays |= {name: pa.array(rng.integers(0, 2, rows)) for name in ("click", "buy")}
    writer = SplitWriter(folder, SCHEMA.columns, record_format)
    writer.write(pa.RecordBatch.from_pydict(arrays))
    writer.close()


def one_by_one(folder: str) -> tf.data.Dataset:
    """Returns the pipeline of most tutorials: each Example parsed by itself."""
    specs = {column.name: tf.io.FixedLenFeature([], tf.int64) for column in SCHEMA.columns}
    files = tf.data.Dataset.list_files(f"{folder}/*.tfrecord").interleave(tf.data.TFRecordDataset)
    parsed = files.shuffle(10_000).map(lambda record: tf.io.parse_single_example(record, specs), tf.data.AUTOTUNE)
    return parsed.batch(BATCH).map(lambda columns: network_inputs(columns, FEATURES)).prefetch(tf.data.AUTOTUNE)


def rate(dataset: tf.data.Dataset, rows: int) -> float:
    """Returns rows a second of a second pass."""
    for _ in range(2):
        start = time.perf_counter()
        for _ in dataset:
            pass
        seconds = time.perf_counter() - start
    return rows / seconds


def main() -> None:
    """Prints the rates."""
    rates = {}
    for name, rows in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(folder, name.split(",")[0], rows)
            size = sum(entry.stat().st_size for entry in os.scandir(folder)) / rows
            if name == "row, one by one":
                dataset = one_by_one(folder)
            else:
                dataset = Reader(load_index(folder), SCHEMA, FEATURES).training_dataset(BATCH, seed=0, epoch=0)
            rates[name] = rate(dataset, rows)
            print(f"{name:<16} {rates[name]:>10,.0f} rows/s  {size:>6.0f} bytes/row")
    for name in list(ROWS)[1:]:
        print(f"packed is read {rates['packed'] / rates[name]:.1f} times as fast as {name}")


if __name__ == "__main__":
    main()
