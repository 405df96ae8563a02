"""Streaming figures against scikit-learn's exact AUC: error, bound, rows a second, memory, and 16 shards against one pass.

python benchmarks/metrics.py [--rows=5000000]
"""

import math
import time
import tracemalloc

import numpy as np
from absl import app, flags
from sklearn.metrics import roc_auc_score

from hm3_tf.metrics import TargetCounts

_ROWS = flags.DEFINE_integer("rows", 5_000_000, "Predictions, with scores in [1e-6, 1e-2] and 0.1 % positives.")
_CHUNK_ROWS = 65_536
_SHARDS = 16


def predictions(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels bool [rows] and log pairs float32 [rows, 2]."""
    generator = np.random.default_rng(0)
    p = np.exp(generator.uniform(math.log(1e-6), math.log(1e-2), rows))
    labels = generator.random(rows) < p * 0.001 / p.mean()
    return labels, np.stack([np.log(p), np.log1p(-p)], axis=1).astype(np.float32)


def counted(labels: np.ndarray, pairs: np.ndarray) -> TargetCounts:
    """Returns the counts of rows, added many at a time."""
    counts = TargetCounts()
    for start in range(0, len(labels), _CHUNK_ROWS):
        counts.update(labels[start : start + _CHUNK_ROWS], pairs[start : start + _CHUNK_ROWS])
    return counts


def main(_: list[str]) -> None:
    """Prints the figures."""
    labels, pairs = predictions(_ROWS.value)
    start = time.perf_counter()
    whole = counted(labels, pairs)
    seconds = time.perf_counter() - start
    result = whole.result()
    tracemalloc.start()
    counted(labels, pairs).result()
    _, memory = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    exact = roc_auc_score(labels, pairs[:, 0] - pairs[:, 1])
    merged = TargetCounts()
    for shard in np.array_split(np.arange(len(labels)), _SHARDS):
        merged.merge(counted(labels[shard], pairs[shard]))
    print(f"rows {len(labels):,}   positives {labels.mean():.4%}")
    print(f"AUC {result['auc']:.9f}   scikit-learn {exact:.9f}   difference {abs(result['auc'] - exact):.1e}")
    print(f"stated bound {result['auc_error']:.1e}")
    print(
        f"{len(labels) / seconds:,.0f} rows/s   {memory / 1e6:.0f} MB at most   state {whole.counts.nbytes / 1e6:.0f} MB"
    )
    print(f"{_SHARDS} shards give the same histogram: {np.array_equal(merged.counts, whole.counts)}")
    print(f"sums differ by {np.abs(merged.sums / whole.sums - 1).max():.1e}")


if __name__ == "__main__":
    app.run(main)
