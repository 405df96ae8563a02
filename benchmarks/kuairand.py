"""All methods on the real log: trains each with three seeds, evaluates it on the test days, prints a Markdown table.

python benchmarks/kuairand.py --data_dir=data/kuairand --workdir=runs/kuairand

Runs that are there already are resumed or only evaluated.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import pathlib
import runpy
import statistics

import tf_keras as keras
from absl import app, flags, logging

from data_pipeline.folder import DataFolder
from hm3_tf.evaluate import evaluate_run
from hm3_tf.methods import METHODS
from hm3_tf.train import train_and_evaluate
from hm3_tf.workdir import open_workdir

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Data folder of the converted log.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds a method.")
CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "kuairand.py"
TARGETS = ("pctr", "pcvr", "pctcvr")


def evaluate(method: str, seed: int) -> dict:
    """Returns the figures on the test split of one run, trained if need be."""
    config = runpy.run_path(str(CONFIG))["get_config"](method)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    workdir = f"{_WORKDIR.value}/{method}-{seed}"
    keras.backend.clear_session()
    train_and_evaluate(config, _DATA_DIR.value, workdir)
    return evaluate_run(open_workdir(workdir), DataFolder.open(_DATA_DIR.value).split("test"), "test")


def cell(values: list[float], digits: int) -> str:
    """Returns mean and standard deviation over the seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main(_: list[str]) -> None:
    """Prints the table."""
    logging.set_verbosity(logging.WARNING)
    print("| method | CTR AUC | CVR AUC | CTCVR AUC | CTR PCOC | CVR PCOC | CTCVR PCOC |")
    print("|---|---|---|---|---|---|---|")
    for method in METHODS:
        runs = [evaluate(method, seed) for seed in range(_SEEDS.value)]
        aucs = [cell([run[target]["auc"] for run in runs], 4) for target in TARGETS]
        pcocs = [cell([run[target]["pcoc"] for run in runs], 2) for target in TARGETS]
        print(f"| {method} | {' | '.join(aucs + pcocs)} |", flush=True)
        for run in runs:
            print("   ", [round(run[target]["auc"], 4) for target in TARGETS], flush=True)


if __name__ == "__main__":
    app.run(main)
