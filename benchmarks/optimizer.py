"""Seconds of an update of an embedding table, Keras' Adam against LazyAdam, by table size. Ratios within one run.

python benchmarks/optimizer.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time

import numpy as np
import tensorflow as tf

from hm3_tf.optimizers import make_optimizer

DIM, IDS, STEPS = 16, 4096 * 26, 5
TABLES = (100_000, 1_000_000, 5_000_000)


def seconds(name: str, rows: int) -> float:
    """Returns the median time of an update that touches 106,496 ids of Zipf popularity."""
    cdf = np.cumsum((np.arange(rows) + 1.0) ** -1.1)
    ids = np.searchsorted(cdf / cdf[-1], np.random.default_rng(0).random(IDS)).astype(np.int32)
    table = tf.Variable(tf.zeros((rows, DIM)))
    gradient = tf.IndexedSlices(tf.ones((IDS, DIM)), tf.constant(ids), tf.constant([rows, DIM]))
    optimizer = make_optimizer(name, learning_rate=0.001)
    step = tf.function(lambda: optimizer.apply_gradients([(gradient, table)]))
    step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        table[0].numpy()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Prints the times."""
    print(f"{'rows of the table':>18} {'adam':>10} {'lazy_adam':>10} {'ratio':>7}")
    for rows in TABLES:
        dense, lazy = seconds("adam", rows), seconds("lazy_adam", rows)
        print(f"{rows:>18,} {dense * 1e3:>7.1f} ms {lazy * 1e3:>7.1f} ms {dense / lazy:>6.1f}x")


if __name__ == "__main__":
    main()
