"""Share of the bound: the network's own matrix products, timed alone, over the whole training step on W, input included.

python benchmarks/training.py [--folder=bench-out]

Products (forward, and the gradients of weights and inputs of every layer of every tower, in the shapes used) are timed between
the steps of an ordinary `hm3 train`, so that a drift of the machine meets both.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import pathlib
import shutil
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras as keras
import workload
from absl import app, flags, logging
from timing import WARM_STEPS

from data_pipeline.folder import DataFolder
from hm3_tf import train
from hm3_tf.config import Config, ModelConfig, TrainingConfig

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
UNITS = (256, 128, 64)
STEPS_BETWEEN = 3
RUNS = (("hm3", "float32"), ("hm3", "bfloat16"), ("esmm", "float32"), ("esmm", "bfloat16"))


def products(towers: int, dtype: tf.DType) -> Callable[[], tf.Tensor]:
    """Returns a function that runs all matrix products of a step, one after another."""
    width = workload.COLUMNS * 16
    later = ((towers, *pair) for pair in itertools.pairwise((*UNITS, 1)))
    shapes = [(1, width, towers * UNITS[0]), *later]
    tensors = [
        (count, *(tf.cast(tf.random.normal(s), dtype) for s in ((workload.BATCH, a), (a, b), (workload.BATCH, b))))
        for count, a, b in shapes
    ]

    @tf.function
    def run() -> tf.Tensor:
        done: list[tf.Tensor] = []
        for count, inputs, kernel, gradient in tensors:
            for _ in range(count):
                for left, right, first, second in (
                    (inputs, kernel, False, False),
                    (inputs, gradient, True, False),
                    (gradient, kernel, False, True),
                ):
                    with tf.control_dependencies(done[-1:]):
                        done.append(tf.matmul(left, right, transpose_a=first, transpose_b=second))
        return tf.add_n([tf.cast(product[0, 0], tf.float32) for product in done])

    return run


class TimedTrainer(train.Trainer):
    """Times steps, and after every few of them the products alone."""

    products: Callable[[], tf.Tensor]

    def on_train_begin(self, logs=None) -> None:
        """Starts the clocks."""
        self.step_seconds, self.product_seconds = [], []
        self.products()
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Ends a step."""
        super().on_train_batch_end(batch, logs)
        now = time.perf_counter()
        if batch >= WARM_STEPS:
            self.step_seconds.append(now - self._last)
            if batch % STEPS_BETWEEN == 0:
                self.products().numpy()
                self.product_seconds.append(time.perf_counter() - now)
        self._last = time.perf_counter()


def measure(folder: pathlib.Path, method: str, precision: str) -> tuple[float, float]:
    """Returns (seconds of a step, seconds of its products): a mean and a median."""
    config = Config(
        model=ModelConfig(method=method, tower_units=UNITS, dropout=0.0),
        training=TrainingConfig(epochs=1, precision=precision),
    )
    workdir = folder / "run-share"
    shutil.rmtree(workdir, ignore_errors=True)
    keras.backend.clear_session()
    edges = sum(len(graph.edges) for graph in config.method.graphs)
    TimedTrainer.products = staticmethod(products(edges, getattr(tf, precision)))
    with mock.patch.object(train, "Trainer", TimedTrainer):
        trainer = train.open_trainer(config, DataFolder.open(str(folder / "data")).path, str(workdir))
    trainer.train()
    return float(np.mean(trainer.step_seconds)), float(np.median(trainer.product_seconds))


def main(_: list[str]) -> None:
    """Prints the shares."""
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    rates = {}
    for method, precision in RUNS:
        step, bound = measure(folder, method, precision)
        rates[method, precision] = workload.BATCH / step
        print(
            f"{method:<5} {precision:<9} {workload.BATCH / step:>8,.0f} examples/s   step {step * 1e3:6.1f} ms   products "
            f"{bound * 1e3:6.1f} ms   share of the bound {bound / step:.2f}",
            flush=True,
        )
    for method in ("hm3", "esmm"):
        print(
            f"{method}: bfloat16 is {rates[method, 'bfloat16'] / rates[method, 'float32']:.2f} times as fast as float32"
        )


if __name__ == "__main__":
    app.run(main)
