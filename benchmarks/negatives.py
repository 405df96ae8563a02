"""Training on a share of the unclicked rows against the whole simulated log: seconds an epoch, AUC, and PCOC on all test rows.

python benchmarks/negatives.py [--folder=bench-out/negatives] [--keep_rate=0.1] [--epochs=3] [--share_epochs=10]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import json
import pathlib
import shutil

from absl import app, flags

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf.config import Config, DataConfig, ModelConfig, TrainingConfig
from hm3_tf.evaluate import evaluate_run
from hm3_tf.train import train_and_evaluate
from hm3_tf.workdir import Workdir, open_workdir

_FOLDER = flags.DEFINE_string("folder", "bench-out/negatives", "Folder of the log and the runs.")
_ROWS = flags.DEFINE_integer("rows", 5_000_000, "Impressions; five of seven days are trained on.")
_KEEP_RATE = flags.DEFINE_float("keep_rate", 0.1, "Share of the unclicked rows.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of all rows.")
_SHARE_EPOCHS = flags.DEFINE_integer("share_epochs", 10, "Epochs of the share, each with other unclicked rows.")
BATCH = 4096
FEATURES = ("position", "city", "age", "gender", "power", "category", "brand", "shop", "price")
TARGETS = ("pctr", "pcvr", "pctcvr", "d_mi", "d_ma")


def config(keep_rate: float, epochs: int) -> Config:
    """Returns the config of a run."""
    model = ModelConfig(tower_units=(64, 32), dropout=0.0, embedding_dim=8, features=FEATURES)
    training = TrainingConfig(global_batch_size=BATCH, epochs=epochs, learning_rate=1e-4, best_metric="pctcvr.log_loss")
    return Config(model, DataConfig(negative_keep_rate=keep_rate), training)


def train(data: DataFolder, keep_rate: float, epochs: int) -> tuple[Workdir, float]:
    """Returns a trained run and the seconds of its last epoch, without validation."""
    workdir = pathlib.Path(_FOLDER.value) / f"run-{keep_rate}"
    shutil.rmtree(workdir, ignore_errors=True)
    train_and_evaluate(config(keep_rate, epochs), data.path, str(workdir))
    last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]
    run = open_workdir(str(workdir))
    return run, last["step"] / epochs * BATCH / last["examples_per_second"]


def uncorrected(run: Workdir) -> Workdir:
    """Returns a run of the same weights whose predictions are those of the rows that it was trained on."""
    whole = dataclasses.replace(run.config, data=DataConfig())
    return dataclasses.replace(run, config=whole)


def report(name: str, metrics: dict) -> None:
    """Prints AUC and PCOC of a run."""
    targets = {target: metrics.get(target) or metrics["levels"][target] for target in TARGETS}
    for figure in ("auc", "pcoc"):
        print(f"{name:<24} {figure:<5} " + "  ".join(f"{t} {f[figure]:.4f}" for t, f in targets.items()), flush=True)


def main(_: list[str]) -> None:
    """Prints the figures."""
    path = pathlib.Path(_FOLDER.value) / f"data-{_ROWS.value}"
    if not path.exists():
        log = SimulatedLog(rows=_ROWS.value)
        convert(SimulatedSource(log), str(path), day_split())
    data = DataFolder.open(str(path))
    test = data.split("test")
    whole, seconds = train(data, 1.0, _EPOCHS.value)
    report("all rows", evaluate_run(whole, test, "test"))
    sampled, fewer = train(data, _KEEP_RATE.value, _SHARE_EPOCHS.value)
    report(f"share {_KEEP_RATE.value}", evaluate_run(sampled, test, "test"))
    report("share, uncorrected", evaluate_run(uncorrected(sampled), test, "test"))
    print(f"an epoch: {seconds:.1f} s of all rows, {fewer:.1f} s of the share: {seconds / fewer:.1f} times as fast")


if __name__ == "__main__":
    app.run(main)
