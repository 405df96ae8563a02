"""Validation AUCs of HM3 in bfloat16 against float32, three seeds each.

python benchmarks/precision.py --config=configs/kuairand.py --data_dir=data/kuairand --workdir=runs/precision

Runs that are there already are resumed or only read.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import json
import pathlib
import runpy
import statistics

import tf_keras as keras
from absl import app, flags, logging

from hm3_tf.config import PRECISIONS, TARGETS
from hm3_tf.train import train_and_evaluate

_CONFIG = flags.DEFINE_string("config", None, "File of the config.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Data folder of the log.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds.")


def validation_aucs(precision: str, seed: int) -> list[float]:
    """Returns the AUCs of pctr, pcvr and pctcvr on validation after the last epoch of a run, trained if need be."""
    config = runpy.run_path(_CONFIG.value)["get_config"]()
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed, precision=precision))
    workdir = pathlib.Path(_WORKDIR.value, f"{precision}-{seed}")
    keras.backend.clear_session()
    train_and_evaluate(config, _DATA_DIR.value, str(workdir))
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    return [last["validation"][target]["auc"] for target in TARGETS]


def main(_: list[str]) -> None:
    """Prints the AUCs a run, their means, and the difference of the means with its standard error."""
    logging.set_verbosity(logging.WARNING)
    aucs = {name: [validation_aucs(name, seed) for seed in range(_SEEDS.value)] for name in PRECISIONS}
    for i, target in enumerate(TARGETS):
        columns = {name: [run[i] for run in runs] for name, runs in aucs.items()}
        means = {name: statistics.mean(values) for name, values in columns.items()}
        error = sum(statistics.variance(values) / len(values) for values in columns.values()) ** 0.5
        runs = "   ".join(f"{name} {' '.join(f'{v:.4f}' for v in values)}" for name, values in columns.items())
        print(f"{target:<7} {runs}   difference {means['bfloat16'] - means['float32']:+.4f} ± {error:.4f}")


if __name__ == "__main__":
    app.run(main)
