"""Training speed on W beside DeepCTR and torch-rechub, all in turn on one machine: prints a Markdown table.

make bench-peers

Each peer runs in an environment of its own and trains its two-tower ESMM; hm3-tf runs its ordinary `hm3 train` from packed
TFRecord. The first 15 steps are dropped. Rounds are interleaved and the median is printed: absolute rates drift on a shared
machine, ratios within one run less so.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import workload
from timing import time_training

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder for the log and the environments of the peers.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds, of which the median is printed.")
HERE = pathlib.Path(__file__).parent
PEERS = {
    "torch-rechub 0.9.0 ESMM, as documented": ("torch-rechub", "torch_rechub_esmm.py", "documented"),
    "torch-rechub 0.9.0 ESMM, fused Adam, pre-built batches": ("torch-rechub", "torch_rechub_esmm.py", "prebuilt"),
    "DeepCTR 0.9.4 ESMM, TFRecord, parsed in batches": ("deepctr", "deepctr_esmm.py", "tfrecord"),
    "DeepCTR 0.9.4 ESMM, arrays in memory": ("deepctr", "deepctr_esmm.py", "memory"),
}
OURS = {"hm3-tf ESMM, packed TFRecord": "esmm", "hm3-tf HM3 (six towers), packed TFRecord": "hm3"}
REFERENCE = "DeepCTR 0.9.4 ESMM, TFRecord, parsed in batches"


def write_inputs(folder: pathlib.Path) -> None:
    """Writes W, its training rows as row TFRecord, and as arrays."""
    workload.write(folder)
    if not (folder / "row").exists():
        workload.convert(folder, folder / "row", "--record_format=row")
    if not (folder / "train.npz").exists():
        rows = workload.table(workload.TOTAL_ROWS).slice(0, workload.ROWS)
        names = [*(f"c{i}" for i in range(workload.COLUMNS)), "click", "purchase"]
        np.savez(folder / "train.npz", **{name: rows.column(name).to_numpy().astype(np.int32) for name in names})


def time_peer(folder: pathlib.Path, environment: str, script: str, feed: str) -> dict[str, float]:
    """Returns the rates of a peer.

    Raises:
      RuntimeError: It failed.
    """
    python = folder / environment / "bin" / "python"
    own_keras = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}  # set by hm3_tf
    done = subprocess.run([python, HERE / script, feed, folder], capture_output=True, text=True, env=own_keras)
    if done.returncode:
        raise RuntimeError(f"{script} {feed} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
    """Prints the table."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    write_inputs(folder)
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in (*PEERS, *OURS)}
    for _ in range(_ROUNDS.value):
        for name, peer in PEERS.items():
            rates[name].append(time_peer(folder, *peer))
        for name, method in OURS.items():
            rates[name].append(time_training(folder, method))
    median = {
        name: [statistics.median(rate[key] for rate in runs) for key in ("examples_per_second", "cpu_seconds")]
        for name, runs in rates.items()
    }
    print(f"| system | examples/s | CPU-seconds per 100,000 | against {REFERENCE} |\n|---|---|---|---|")
    for name, (rate, cpu_seconds) in median.items():
        print(f"| {name} | {rate:,.0f} | {cpu_seconds:.2f} | {rate / median[REFERENCE][0]:.2f}x |")


if __name__ == "__main__":
    app.run(main)
