"""Step time and peak memory of `hm3 train` on W with tables of 100,000 rows and with four of ten million.

python benchmarks/tables.py [--folder=bench-out]

Four of the 26 tables have ten million rows (7.7 GB with both moments; all 26 would need 50). The ids are the same, hashed into
more rows, so a step touches as many rows as before, spread over a hundred times the memory.
"""

import pathlib
import statistics

import timing
import workload
from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
LARGE_TABLES, LARGE_ROWS = 4, 10_000_000
DIM, ROUNDS = 16, 2


def tables_bytes(large: int) -> int:
    """Returns the bytes of all tables and their two moments, `large` of them large."""
    rows = large * LARGE_ROWS + (workload.COLUMNS - large) * (workload.IDS + 1)
    return 3 * rows * DIM * 4


def main(_: list[str]) -> None:
    """Prints the step times and the peaks."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    large = [f"--config.model.hash_buckets.c{i}={LARGE_ROWS}" for i in range(LARGE_TABLES)]
    kinds = {"100,000 rows": (0, []), f"{LARGE_TABLES} of {LARGE_ROWS:,} rows": (LARGE_TABLES, large)}
    runs = [{name: timing.train(folder, "hm3", *extra) for name, (_, extra) in kinds.items()} for _ in range(ROUNDS)]
    milliseconds = {}
    for name, (count, _) in kinds.items():
        milliseconds[name] = statistics.mean(workload.BATCH / rate * 1e3 for rate, _, _ in (run[name] for run in runs))
        peak, expected = max(run[name][2] for run in runs), tables_bytes(count)
        bound = 1.3 * expected + 1.5 * 2**30
        print(
            f"{name:<24} {milliseconds[name]:6.1f} ms a step   peak {peak / 2**30:5.2f} GiB, tables and moments "
            f"{expected / 2**30:5.2f} GiB, 1.3 times these and 1.5 GiB {bound / 2**30:5.2f} GiB"
        )
    first, second = milliseconds.values()
    print(f"a step on the large tables takes {second / first:.2f} times as long")


if __name__ == "__main__":
    app.run(main)
