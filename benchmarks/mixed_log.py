"""A log of columns of all kinds, for the benchmarks of the data pipeline.

Half of the inputs are ids (Zipf 1.1 over 100,000), a quarter each numbers and strings, one is a list; four nested labels at the
rates of workload W.
"""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import workload

from data_pipeline import schema as schemas
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema

DAYS = 10
_LENGTH, _PART_ROWS = 5, 250_000


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
    return pa.table(columns | {"day": 20220501 + np.arange(rows) * DAYS // rows} | labels)


def write_parts(folder: pathlib.Path, schema: Schema, rows: int) -> None:
    """Writes `folder`/log.parquet, a folder of parts, and its schema.json; each part has all days."""
    (folder / "log.parquet").mkdir(parents=True)
    (folder / "schema.json").write_text(schemas.to_json(schema))
    for seed, first in enumerate(range(0, rows, _PART_ROWS)):
        table = part(schema, min(_PART_ROWS, rows - first), seed)
        pq.write_table(table, folder / "log.parquet" / f"{seed:03}.parquet")


def convert_command(folder: pathlib.Path) -> list[str]:
    """Returns the command that makes `folder`/data of the parts; its last two days are validation and test."""
    split = ["--split=date:2022-05-09,2022-05-10", "--split_column=day", f"--schema={folder}/schema.json"]
    paths = ["--source=parquet", f"--input={folder}/log.parquet", f"--output_dir={folder}/data"]
    return [str(workload.HM3), "convert", *paths, *split]
