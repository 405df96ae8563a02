"""Weak scaling of `hm3 train` on W: one process on one core against two on one core each, a batch a process and step.

python benchmarks/scaling.py [--folder=bench-out] [--steps=60]

Efficiency is the rate of the two over twice that of the one. Beside it stand the bytes of gradients of tables that a process
sends a step, as training logs them, against those of an all-gather of a row an id. The first 15 steps are not timed. What
more replicas would send follows from the distinct ids of a batch (docs/scaling.md).
"""

import itertools
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess

import numpy as np
import timing
import workload
from absl import app, flags

from hm3_tf.cluster import free_addresses
from hm3_tf.exchange import TableTraffic
from hm3_tf.features import Table
from hm3_tf.methods import HM3

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
_STEPS = flags.DEFINE_integer("steps", 60, "Steps of a run: multiple of 5, above 15, at most 60.", 20, 60)
ROUNDS, DIM = 3, 16
WIDTHS = (workload.COLUMNS * DIM, 256, 128, 64, 1)  # of a tower
DENSE_WEIGHTS = len(HM3.graph.edges) * (sum(map(math.prod, itertools.pairwise(WIDTHS))) + 1)


def start(command: list[str], core: int, log: pathlib.Path, tf_config: dict | None) -> subprocess.Popen:
    """Starts a command on one core, with one thread in each of TensorFlow's pools; its output goes to a file."""
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    environment = os.environ | threads | ({"TF_CONFIG": json.dumps(tf_config)} if tf_config else {})
    pinned = ["taskset", "--cpu-list", str(core), *command]
    with log.open("w") as output:
        return subprocess.Popen(pinned, env=environment, stdout=output, stderr=subprocess.STDOUT)


def train(folder: pathlib.Path, processes: int) -> list[dict]:
    """Trains HM3 on W with one batch a process and step.

    Args:
      folder: Folder of the log.
      processes: 1, or more under MultiWorkerMirroredStrategy.

    Returns:
      The figures of the intervals that are timed.

    Raises:
      RuntimeError: A process failed.
    """
    workdir = folder / f"run-scaling-{processes}"
    shutil.rmtree(workdir, ignore_errors=True)
    fields = [
        f"distribution.strategy={'multi_worker' if processes > 1 else 'one_device'}",
        f"training.global_batch_size={processes * workload.BATCH}",
        f"training.log_every_steps={timing.LOG_STEPS}",
        f"training.max_steps={_STEPS.value}",
    ]
    command = workload.train_command(folder, workdir, "hm3", *(f"--config.{field}" for field in fields))
    cluster, cores = {"worker": free_addresses(processes)}, sorted(os.sched_getaffinity(0))
    group = []
    try:
        for index in range(processes):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            log = folder / f"scaling-{processes}-{index}.log"
            group.append((start(command, cores[index], log, config if processes > 1 else None), log))
        for process, log in group:
            if process.wait():
                raise RuntimeError(f"{command} failed: {log.read_text()[-2000:]}")
    finally:
        for process, _ in group:
            process.kill()
    return timing.intervals(workdir)


def sent_bytes(batch: int, replicas: int) -> tuple[int, int, int]:
    """Returns the bytes that a replica with `batch` rows of W sends a step: dense weights, tables, tables naively."""
    ids = {f"c{i}": workload.zipf_ids(np.random.default_rng(i), batch) for i in range(workload.COLUMNS)}
    tables = [
        TableTraffic(Table(name, workload.IDS + 1, DIM), batch, np.unique(ids[name]).size, replicas) for name in ids
    ]
    towers = 2 * (replicas - 1) * 4 * DENSE_WEIGHTS // replicas
    best = sum(min(table.dense_bytes, table.gathered_bytes) for table in tables)
    return towers, best, sum(table.naive_bytes for table in tables)


def main(_: list[str]) -> None:
    """Prints what follows for more replicas, and the rates, the efficiency and the bytes of two."""
    print("bytes that a replica sends a step")
    print(f"{'replicas':>8} {'batch each':>10} {'dense weights':>14} {'tables':>12} {'naively':>14}")
    for batch, replicas in itertools.product((workload.BATCH, 8 * workload.BATCH), (2, 8, 64)):
        print("{:>8} {:>10,} {:>14,} {:>12,} {:>14,}".format(replicas, batch, *sent_bytes(batch, replicas)))
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    efficiencies, sent = [], []
    for number in range(ROUNDS):
        alone = timing.examples_per_second(train(folder, 1), workload.BATCH)
        timed = train(folder, 2)
        together = timing.examples_per_second(timed, 2 * workload.BATCH)
        efficiencies.append(together / (2 * alone))
        sent += [line["bytes_exchanged"] for line in timed]
        print(
            f"round {number + 1}: 1 process {alone:>8,.0f} examples/s   2 processes {together:>8,.0f} examples/s   efficiency "
            f"{efficiencies[-1]:.2f}",
            flush=True,
        )
    naive = workload.BATCH * workload.COLUMNS * 4 * (DIM + 1)
    print(f"efficiency, the median: {statistics.median(efficiencies):.2f}")
    print(
        f"gradients of tables, a process and step: {statistics.mean(sent):,.0f} bytes; an all-gather of a row an id {naive:,}: "
        f"{naive / statistics.mean(sent):.1f} times as many"
    )


if __name__ == "__main__":
    app.run(main)
