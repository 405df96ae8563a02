"""Validation at size: rows a second and peak memory of `hm3 validate`, on logs of two lengths that are made first.

python benchmarks/validating.py [--rows=1000000] [--columns=20 --columns=57]

Half of the inputs are ids (Zipf 1.1 over 100,000), a quarter each numbers and strings, one is a list; four nested labels. The
rate is that between the two lengths, the start of the process left out; the peaks beside each other say whether memory grows.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timing
import workload
from absl import app, flags

from data_pipeline import schema as schemas
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema

_ROWS = flags.DEFINE_integer("rows", 1_000_000, "Rows of the longer log; the shorter one has a quarter.", lower_bound=4)
_COLUMNS = flags.DEFINE_multi_integer("columns", [20, 57], "Columns of a log, at least 10.", lower_bound=10)
_FOLDER = flags.DEFINE_string("folder", None, "Where the logs go; default a temporary folder.")
_LENGTH, _PART_ROWS, _DAYS = 5, 250_000, 10


def schema_of(columns: int) -> Schema:
    """Returns the schema of a log of so many columns, of which a list, the day and the labels are the last six."""
    hashing = Hashing(workload.IDS)
    kinds = ("int64", "float", "int64", "string")
    inputs = [Column(f"c{i}", kinds[i % 4], hashing=None if i % 4 == 1 else hashing) for i in range(columns - 6)]
    inputs += [Column("history", "int64", shape=VARIABLE, max_length=_LENGTH, hashing=hashing)]
    labels = [Column(name, "int64", "behavior") for name in workload.LEVELS]
    levels = [Level(name, (name,), gate=name == "click") for name in workload.LEVELS]
    return Schema((*inputs, Column("day", "int64", "ignored"), *labels), tuple(levels))


def part(schema: Schema, rows: int, seed: int) -> pa.Table:
    """Returns rows of a log, its days one after another."""
    generator = np.random.default_rng(seed)
    columns = {}
    for column in schema.inputs:
        ids = workload.zipf_ids(generator, rows)
        if column.shape == VARIABLE:
            starts = np.concatenate([[0], np.cumsum(generator.integers(0, _LENGTH + 1, rows))]).astype(np.int32)
            columns[column.name] = pa.ListArray.from_arrays(starts, pa.array(np.resize(ids, starts[-1])))
        elif column.dtype == "string":
            columns[column.name] = pa.array(np.char.add("value ", ids.astype(str)).tolist())
        else:
            columns[column.name] = pa.array(ids if column.dtype == "int64" else np.log1p(ids).astype(np.float32))
    draws = {name: generator.random(rows) < rate for name, rate in workload.LEVELS.items()}
    labels = {name: (draw & draws["click"]).astype(np.int64) for name, draw in draws.items()}
    return pa.table(columns | {"day": 20220501 + np.arange(rows) * _DAYS // rows} | labels)


def write_log(folder: pathlib.Path, columns: int, rows: int) -> None:
    """Writes a log of Parquet parts and converts it; its last two days are validation and test."""
    schema = schema_of(columns)
    (folder / "log.parquet").mkdir(parents=True)
    (folder / "schema.json").write_text(schemas.to_json(schema))
    for seed, first in enumerate(range(0, rows, _PART_ROWS)):
        table = part(schema, min(_PART_ROWS, rows - first), seed)
        pq.write_table(table, folder / "log.parquet" / f"{seed:03}.parquet")
    split = ["--split=date:2022-05-09,2022-05-10", "--split_column=day", f"--schema={folder}/schema.json"]
    paths = ["--source=parquet", f"--input={folder}/log.parquet", f"--output_dir={folder}/data"]
    timing.run([str(workload.HM3), "convert", *paths, *split])


def main(_: list[str]) -> None:
    """Prints the figures."""
    lengths = (_ROWS.value // 4, _ROWS.value)
    for columns in _COLUMNS.value:
        taken, peaks = [], []
        for rows in lengths:
            folder = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.value))
            try:
                write_log(folder, columns, rows)
                seconds, _, peak = timing.run([str(workload.HM3), "validate", f"--data_dir={folder}/data"])
            finally:
                shutil.rmtree(folder)
            taken.append(seconds)
            peaks.append(peak)
        rate = (lengths[1] - lengths[0]) / (taken[1] - taken[0])
        memory = ", ".join(f"{peak / 2**20:,.0f} MiB for {rows:,} rows" for rows, peak in zip(lengths, peaks))
        print(f"{columns} columns: {rate:,.0f} rows/s; {memory}", flush=True)


if __name__ == "__main__":
    app.run(main)
