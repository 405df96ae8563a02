"""Rows a second from TFRecord: packed records, row records parsed in batches, row records parsed one by one.

python benchmarks/reading.py

26 id columns (Zipf 1.1 over 100,000 ids each) and two labels; hashed, shuffled, in batches of 4,096. Then the same with
a column of strings, a number and a list of 1 to 10 ids more. All in turn, medians over rounds: ratios within one run.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import tempfile
import time

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data_pipeline.hashing import network_inputs
from data_pipeline.index import load_index
from data_pipeline.read import Reader
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.write import SplitWriter, write_index
from hm3_tf.features import Feature, HashedFeature, NumericFeature

COLUMNS, IDS, LENGTH, BATCH, ROUNDS = 26, 100_000, 10, 4096, 5
ROWS = {"packed": 1_000_000, "packed, more columns": 1_000_000, "row": 200_000, "row, one by one": 50_000}
ID_COLUMNS = tuple(Column(f"c{i}", "int64", hashing=Hashing(IDS)) for i in range(COLUMNS))
LABELS = tuple(Column(name, "int64", "behavior") for name in ("click", "buy"))
MORE_COLUMNS = (
    Column("city", "string", hashing=Hashing(IDS)),
    Column("price", "float"),
    Column("history", "int64", shape=VARIABLE, max_length=LENGTH, hashing=Hashing(IDS)),
)


def schema(name: str) -> Schema:
    """Returns the schema of a log."""
    more = MORE_COLUMNS if "more" in name else ()
    return Schema((*ID_COLUMNS, *more, *LABELS), (Level("click", ("click",), gate=True), Level("purchase", ("buy",))))


def features(name: str) -> list[Feature]:
    """Returns the features of a log: all columns."""
    return [
        NumericFeature(column.name, (0.0,), (1.0,))
        if column.dtype == "float"
        else HashedFeature(column.name, column.dtype, IDS, column.name, column.name, 16, column.length)
        for column in schema(name).inputs
    ]


def write(folder: str, name: str, rows: int) -> None:
    """Writes a random log."""
    rng = np.random.default_rng(0)
    cdf = np.cumsum((np.arange(IDS) + 1.0) ** -1.1)
    ids = np.searchsorted(cdf / cdf[-1], rng.random((COLUMNS + 1, rows)))
    arrays = {f"c{i}": pa.array(column) for i, column in enumerate(ids[1:])}
    arrays |= {label.name: pa.array(rng.integers(0, 2, rows)) for label in LABELS}
    if "more" in name:
        starts = np.concatenate([[0], np.cumsum(rng.integers(1, LENGTH + 1, rows))]).astype(np.int32)
        arrays["city"] = pa.array([b"city-%d" % number for number in ids[0].tolist()])
        arrays["price"] = pa.array(rng.random(rows).astype(np.float32))
        arrays["history"] = pa.ListArray.from_arrays(starts, pa.array(rng.choice(ids[0], starts[-1])))
    record_format = name.split(",")[0]
    writer = SplitWriter(folder, schema(name).columns, record_format)
    writer.write(pa.RecordBatch.from_pydict(arrays))
    write_index(folder, record_format, writer.finish())


def one_by_one(folder: str) -> tf.data.Dataset:
    """Returns the pipeline of most tutorials: each Example parsed by itself."""
    specs = {column.name: tf.io.FixedLenFeature([], tf.int64) for column in (*ID_COLUMNS, *LABELS)}
    files = tf.data.Dataset.list_files(f"{folder}/*.tfrecord").interleave(tf.data.TFRecordDataset)
    parsed = files.shuffle(10_000).map(lambda record: tf.io.parse_single_example(record, specs), tf.data.AUTOTUNE)
    return parsed.batch(BATCH).map(lambda columns: network_inputs(columns, features("row"))).prefetch(tf.data.AUTOTUNE)


def rate(dataset: tf.data.Dataset, rows: int) -> float:
    """Returns rows a second of a pass."""
    start = time.perf_counter()
    for _ in dataset:
        pass
    return rows / (time.perf_counter() - start)


def main() -> None:
    """Prints the rates."""
    with tempfile.TemporaryDirectory() as root:
        datasets, sizes = {}, {}
        for name, rows in ROWS.items():
            folder = os.path.join(root, name)
            os.mkdir(folder)
            write(folder, name, rows)
            sizes[name] = sum(entry.stat().st_size for entry in os.scandir(folder)) / rows
            reader = Reader(load_index(folder), schema(name), features(name))
            is_ours = name != "row, one by one"
            datasets[name] = reader.training_dataset(BATCH, seed=0, epoch=0) if is_ours else one_by_one(folder)
        rounds = [{name: rate(datasets[name], rows) for name, rows in ROWS.items()} for _ in range(1 + ROUNDS)]
    rates = {name: statistics.median(figures[name] for figures in rounds[1:]) for name in ROWS}
    for name, size in sizes.items():
        print(f"{name:<20} {rates[name]:>10,.0f} rows/s  {size:>6.0f} bytes/row")
    for name in ("row", "row, one by one"):
        print(f"packed is read {rates['packed'] / rates[name]:.1f} times as fast as {name}")


if __name__ == "__main__":
    main()
