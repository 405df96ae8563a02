"""Validation at size: rows a second and peak memory of `hm3 validate`, on logs of two lengths that are made first.

python benchmarks/validating.py [--rows=1000000] [--columns=20 --columns=57]

The rate is that between the two lengths, the start of the process left out; the peaks beside each other say whether memory
grows.
"""

import pathlib
import shutil
import tempfile

import mixed_log
import timing
import workload
from absl import app, flags

_ROWS = flags.DEFINE_integer(
    "rows", 1_000_000, "Rows of the longer log; the shorter one has a quarter.", lower_bound=100
)
_COLUMNS = flags.DEFINE_multi_integer("columns", [20, 57], "Columns of a log, at least 10.", lower_bound=10)
_FOLDER = flags.DEFINE_string("folder", None, "Where the logs go; default a temporary folder.")


def main(_: list[str]) -> None:
    """Prints the figures."""
    lengths = (_ROWS.value // 4, _ROWS.value)
    for columns in _COLUMNS.value:
        taken, peaks = [], []
        for rows in lengths:
            folder = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.value))
            try:
                mixed_log.write_parts(folder, mixed_log.schema_of(columns), rows)
                timing.run(mixed_log.convert_command(folder))
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
