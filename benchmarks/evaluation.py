"""Rows a second of evaluation and prediction against training (HM3 on W), and of conversion from Parquet.

python benchmarks/evaluation.py [--folder=bench-out]

Start-up is in none of the rates: training is timed after its first steps, evaluation in a later call, and from prediction is
subtracted what a split of one batch takes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import pathlib
import shutil
import time
from collections.abc import Callable

import timing
import workload
from absl import app, flags

from data_pipeline.convert import convert, threshold_rule
from data_pipeline.folder import DataFolder
from data_pipeline.sources import open_source
from hm3_tf.evaluate import Evaluator, evaluation_reader
from hm3_tf.predict import predict_run
from hm3_tf.workdir import open_workdir

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
ROUNDS = 3


def fastest(function: Callable[[], object]) -> float:
    """Returns the least seconds of a few calls; the first one traces what it runs."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def convert_log(folder: pathlib.Path) -> None:
    """Converts the Parquet log of W in this process."""
    shutil.rmtree(folder / "converted", ignore_errors=True)
    source = open_source("parquet", str(folder / "log.parquet"), workload.schema())
    convert(source, str(folder / "converted"), threshold_rule("day", 20220502, 20220503))


def main(_: list[str]) -> None:
    """Prints the rates."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    training, _, _ = timing.train(folder, "hm3")
    run = open_workdir(str(folder / "run-hm3"))
    data = DataFolder.open(str(folder / "data"))
    index, start = data.split("test"), data.split("validation")
    evaluator = Evaluator(run.trained_model(), run.config, evaluation_reader(run, index))
    output = str(folder / "p.parquet")
    whole, first = (fastest(functools.partial(predict_run, run, split, output)) for split in (index, start))
    rates = {
        "training": training,
        "evaluation": index.rows / fastest(evaluator),
        "prediction to Parquet": (index.rows - start.rows) / (whole - first),
    }
    for name, rate in rates.items():
        print(f"{name:<22} {rate:>10,.0f} rows/s   {rate / training:.2f} times training")
    print(f"conversion of Parquet  {workload.TOTAL_ROWS / fastest(lambda: convert_log(folder)):>10,.0f} rows/s")


if __name__ == "__main__":
    app.run(main)
