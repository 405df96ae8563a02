"""Workload W: the log that the speed benchmarks share, and the config that they train on it.

26 single-valued id columns of 100,000 ids each from Zipf(1.1), four nested labels at the rates of the `dense` profile.
"""

import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import schema as schemas
from data_pipeline.schema import Column, Hashing, Level, Schema

COLUMNS, IDS, BATCH = 26, 100_000, 4096
ROWS = 120 * BATCH  # of the training split: 15 steps to warm up, 105 that are timed
EVALUATION_ROWS = 100 * BATCH
TOTAL_ROWS = ROWS + BATCH + EVALUATION_ROWS  # with one batch of validation
LEVELS = {"click": 0.10, "d_mi": 0.25, "d_ma": 0.13, "purchase": 0.034}  # rate of the click, then rates given a click
HM3 = pathlib.Path(sys.executable).with_name("hm3")


def schema(buckets: dict[str, int] | None = None) -> Schema:
    """Returns the schema of W; `buckets` are hash buckets {column: rows} where they are not 100,001."""
    columns = [Column(f"c{i}", "int64", hashing=Hashing((buckets or {}).get(f"c{i}", IDS + 1))) for i in range(COLUMNS)]
    columns += [Column("day", "int64", "ignored"), *(Column(name, "int64", "behavior") for name in LEVELS)]
    return Schema(tuple(columns), tuple(Level(name, (name,), gate=name == "click") for name in LEVELS))


def zipf_ids(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Returns int64 [rows], ids from Zipf(1.1) over 100,000."""
    cdf = np.cumsum((np.arange(IDS) + 1.0) ** -1.1)
    return np.searchsorted(cdf / cdf[-1], generator.random(rows)).astype(np.int64)


def table(rows: int, seed: int = 0) -> pa.Table:
    """Returns rows of W; `day` is 2022-05-01 for training, 05-02 for validation (one batch) and 05-03 for evaluation."""
    generator = np.random.default_rng(seed)
    columns = {f"c{i}": pa.array(zipf_ids(generator, rows)) for i in range(COLUMNS)}
    days = np.full(rows, 20220501)
    days[ROWS:] = 20220502
    days[ROWS + BATCH :] = 20220503
    draws = {name: generator.random(rows) < rate for name, rate in LEVELS.items()}
    labels = {name: (draw & draws["click"]).astype(np.int64) for name, draw in draws.items()}
    return pa.table(columns | {"day": days} | labels)


def write(folder: pathlib.Path) -> None:
    """Writes `folder`/log.parquet, schema.json and the converted `folder`/data, unless they are there."""
    if (folder / "data").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.json").write_text(schemas.to_json(schema()))
    pq.write_table(table(TOTAL_ROWS), folder / "log.parquet")
    convert(folder, folder / "data")


def convert(folder: pathlib.Path, output: pathlib.Path, *flags: str) -> None:
    """Converts the Parquet log of `folder` with `hm3 convert`."""
    split = ["--split=date:2022-05-02,2022-05-03", "--split_column=day", f"--schema={folder}/schema.json"]
    paths = ["--source=parquet", f"--input={folder}/log.parquet", f"--output_dir={output}"]
    subprocess.run([HM3, "convert", *paths, *split, *flags], check=True, capture_output=True)


def train_command(folder: pathlib.Path, workdir: pathlib.Path, method: str, *flags: str) -> list[str]:
    """Returns the `hm3 train` command of W for a method."""
    config = pathlib.Path(__file__).parent.parent / "configs" / f"{method}.py"
    paths = [f"--config={config}", f"--data_dir={folder}/data", f"--workdir={workdir}"]
    fields = ["model.tower_units=(256,128,64)", "model.dropout=0.0", "training.epochs=1"]
    return [str(HM3), "train", *paths, *(f"--config.{field}" for field in fields), *flags]
