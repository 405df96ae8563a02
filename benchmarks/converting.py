"""Rows a second of `hm3 convert`, from Parquet to packed records, with one process and with two.

python benchmarks/converting.py [--parts=16]

Workload W (26 id columns, four labels and a day) in files of 1,048,576 rows, a part each. Whole commands, starts included, and
the rate that the command itself prints. Both folders have to be the same, byte for byte.
"""

import filecmp
import os
import pathlib
import re
import subprocess
import tempfile
import time

import pyarrow.parquet as pq
import workload
from absl import app, flags

from data_pipeline import schema as schemas

_PARTS = flags.DEFINE_integer("parts", 16, "Files of the log.", lower_bound=1)
_ROWS, _DIFFERENT = 2**20, 4


def write_log(folder: pathlib.Path) -> None:
    """Writes the files; every fourth one is the same."""
    (folder / "schema.json").write_text(schemas.to_json(workload.schema()))
    (folder / "log").mkdir()
    for i in range(_PARTS.value):
        path = folder / "log" / f"{i:03d}.parquet"
        if i < _DIFFERENT:
            pq.write_table(workload.table(_ROWS, seed=i), path)
        else:
            os.link(folder / "log" / f"{i % _DIFFERENT:03d}.parquet", path)


def convert(folder: pathlib.Path, processes: int) -> tuple[float, float]:
    """Converts the log to `folder`/PROCESSES; returns (seconds of the command, rows a second that it prints)."""
    paths = [f"--input={folder}/log", f"--output_dir={folder}/{processes}", f"--schema={folder}/schema.json"]
    command = [workload.HM3, "convert", "--source=parquet", *paths, f"--processes={processes}"]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return seconds, float(re.findall(r"rows, ([\d,]+) a second", done.stderr)[-1].replace(",", ""))


def main(_arguments: list[str]) -> None:
    """Prints the rates."""
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        write_log(folder)
        figures = {processes: convert(folder, processes) for processes in (1, 2)}
        names = sorted(path.relative_to(folder / "1") for path in (folder / "1").rglob("*") if path.is_file())
        same, *others = filecmp.cmpfiles(folder / "1", folder / "2", names, shallow=False)
        size = sum((folder / "1" / name).stat().st_size for name in names)
    rows = _PARTS.value * _ROWS
    print(f"{rows:,} rows of {len(workload.schema().columns)} columns, {size / rows:.0f} bytes a row written")
    for processes, (seconds, rate) in figures.items():
        print(f"{processes} process{'es' * (processes > 1):<3} {rate:>9,.0f} rows/s; the whole command {seconds:.1f} s")
    print(f"two to one: {figures[2][1] / figures[1][1]:.2f} in rows/s, {figures[1][0] / figures[2][0]:.2f} in all")
    print(f"{len(same)} files the same, {sum(map(len, others))} not")


if __name__ == "__main__":
    app.run(main)
