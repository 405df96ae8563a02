"""Rows a second of evaluation and prediction against training (HM3 on W), and of conversion from Parquet.

python benchmarks/evaluation.py [--folder=bench-out]

Start-up is in none of the rates: training is timed after its first steps, evaluation in a later call, and from prediction is
subtracted what a split of one batch takes. All are timed in turn, in rounds, and medians are printed, as the machine drifts.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import shutil
import statistics
import time
from collections.abc import Callable

import timing
import workload
from absl import app, flags

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.index import SplitIndex
from data_pipeline.sources import open_source
from data_pipeline.split_rules import ThresholdRule
from hm3_tf.evaluate import Evaluator, evaluation_reader
from hm3_tf.predict import predict_run
from hm3_tf.workdir import Workdir, open_workdir

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
ROUNDS = 3


def seconds(function: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def prediction_seconds(run: Workdir, index: SplitIndex, output: pathlib.Path) -> float:
    """Returns the seconds of predicting a split into a new file or folder."""
    if output.is_dir():
        shutil.rmtree(output)
    return seconds(lambda: predict_run(run, index, str(output)))


def convert_log(folder: pathlib.Path) -> None:
    """Converts the Parquet log of W in this process."""
    shutil.rmtree(folder / "converted", ignore_errors=True)
    source = open_source("parquet", str(folder / "log.parquet"), workload.schema())
    convert(source, str(folder / "converted"), ThresholdRule("day", 20220502, 20220503))


def main(_: list[str]) -> None:
    """Prints the rates."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    timing.train(folder, "hm3")
    run = open_workdir(str(folder / "run-hm3"))
    data = DataFolder.open(str(folder / "data"))
    index, start = data.split("test"), data.split("validation")
    evaluator = Evaluator(run.trained_model(), run.config, evaluation_reader(run, index))
    evaluator()  # traces
    outputs = {"prediction to Parquet": folder / "p.parquet", "prediction, a file a shard": folder / "predictions"}
    rates: dict[str, list[float]] = {
        "training": [],
        "evaluation": [],
        **{name: [] for name in outputs},
        "conversion of Parquet": [],
    }
    for _ in range(ROUNDS):
        for name, output in outputs.items():
            whole, first = (prediction_seconds(run, split, output) for split in (index, start))
            rates[name].append((index.rows - start.rows) / (whole - first))
        rates["evaluation"].append(index.rows / seconds(evaluator))
        rates["training"].append(timing.train(folder, "hm3")[0])
        rates["conversion of Parquet"].append(workload.TOTAL_ROWS / seconds(lambda: convert_log(folder)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:<26} {rate:>10,.0f} rows/s   {rate / medians['training']:.2f} times training")


if __name__ == "__main__":
    app.run(main)
