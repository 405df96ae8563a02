"""A chief, two workers and two servers on this machine, of which a worker is killed, against a run of one process."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf import train
from hm3_tf.config import DistributionConfig
from hm3_tf.evaluate import evaluate_run
from hm3_tf.train import train_and_evaluate
from hm3_tf.workdir import open_workdir

TIMEOUT_S = 240
EPOCHS, EPOCH_STEPS, STRETCH = 2, 28, 4
FLAGS = (
    f"--config={pathlib.Path(__file__).parents[2]}/configs/demo.py",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.global_batch_size=512",
    f"--config.training.log_every_steps={STRETCH}",
    "--config.training.checkpoint_every_steps=16",
    "--config.model.tower_units=8,4",
    "--config.model.embedding_dim=4",
    f"--config.data.shuffle_rows={STRETCH * 512}",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log as a data folder: 14,286 rows of train, 2,857 each of validation and test; not all purchases were clicked."""
    path = str(tmp_path_factory.mktemp("log") / "data")
    source = SimulatedLog("non_nested", rows=20_000, users=300, items=300)
    convert(SimulatedSource(source), path, day_split())
    return DataFolder.open(path)


def workers_of(launcher: int) -> dict[int, int]:
    """Returns {index: process} of the workers that a launcher started."""
    found = {}
    for child in pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = pathlib.Path("/proc", child, "environ").read_text().split("\0")
        tasks = [json.loads(text.partition("=")[2])["task"] for text in environment if text.startswith("TF_CONFIG=")]
        found |= {task["index"]: int(child) for task in tasks if task["type"] == "worker"}
    return found


def read_lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def epoch_ends(workdir: pathlib.Path) -> list[dict]:
    return [line for line in read_lines(workdir / "metrics.jsonl") if "epoch_end" in line]


def start(arguments: list[str], output) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_CONFIG", None)
    return subprocess.Popen(
        [sys.executable, "-m", "hm3_tf", *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def cluster(log, tmp_path_factory):
    """The workdir of the run and what the launcher printed; worker 0 was killed in the first epoch."""
    folder = tmp_path_factory.mktemp("cluster")
    command = ["launch", "--workers=2", "--servers=2", "--max_restarts=1", "--", "train", *FLAGS]
    with open(folder / "output", "w") as output:
        launcher = start([*command, f"--data_dir={log.path}", f"--workdir={folder}/run"], output)
        try:
            end = time.monotonic() + TIMEOUT_S
            while not read_lines(folder / "run" / "metrics.jsonl"):
                assert launcher.poll() is None and time.monotonic() < end, (folder / "output").read_text()[-3000:]
                time.sleep(0.05)
            os.kill(workers_of(launcher.pid)[0], 9)
            status = launcher.wait(TIMEOUT_S)
        finally:
            launcher.terminate()
            launcher.wait(TIMEOUT_S)
    printed = (folder / "output").read_text()
    assert status == 0, printed[-3000:]
    return folder / "run", printed


def test_a_killed_worker_is_started_again_alone_and_the_run_goes_on(cluster):
    workdir, printed = cluster
    assert "lost worker 0, ended with SIGKILL (restart 1 of 1)" in printed
    assert "resuming" not in printed
    assert [line["step"] for line in epoch_ends(workdir)] == [EPOCH_STEPS * (epoch + 1) for epoch in range(EPOCHS)]


def test_the_chief_tells_what_is_wrong_with_the_log(cluster):
    _, printed = cluster
    assert "[chief] the log: warning: hierarchy: train: 14 rows with purchase without click" in printed


def test_no_step_is_lost_and_only_those_of_the_killed_worker_are_taken_again(cluster):
    workdir, _ = cluster
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    updates = tf.train.load_variable(latest, "optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE")
    assert EPOCHS * EPOCH_STEPS <= updates <= EPOCHS * EPOCH_STEPS + STRETCH


def test_a_table_is_split_over_the_servers(cluster):
    workdir, printed = cluster
    held = {
        int(server): int(count.replace(",", "")) for count, server in re.findall(r"([\d,]+) on server (\d)", printed)
    }
    latest = pathlib.Path(tf.train.latest_checkpoint(str(workdir / "checkpoints")))
    table = tf.train.load_variable(str(latest), "network/layer_with_weights-0/embeddings_4/.ATTRIBUTES/VARIABLE_VALUE")
    assert set(held) == {0, 1} and min(held.values()) >= table.size // 2
    sizes = [path.stat().st_size for path in latest.parent.glob(f"{latest.name}.data-*")]
    assert sum(size > 3 * table.nbytes // 2 for size in sizes) == 2  # half of the table and of its two moments each


def test_one_process_has_the_figures_of_the_validation(cluster, log):
    workdir, _ = cluster
    best = max(epoch_ends(workdir), key=lambda line: line["validation"]["pctcvr"]["auc"])
    alone = evaluate_run(open_workdir(str(workdir)), log.split("validation"), "validation")
    for target in ("pctr", "pcvr", "pctcvr"):
        assert alone[target]["auc"] == pytest.approx(best["validation"][target]["auc"], abs=1e-6)
        assert alone[target]["log_loss"] == pytest.approx(best["validation"][target]["log_loss"], rel=1e-5)


@pytest.fixture(scope="module")
def alone(log, tmp_path_factory):
    """The workdir of the same run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with open(folder / "output", "w") as output:
        process = start(["train", *FLAGS, f"--data_dir={log.path}", f"--workdir={folder}/run"], output)
        assert process.wait(TIMEOUT_S) == 0, (folder / "output").read_text()[-3000:]
    return folder / "run"


def test_the_figures_are_near_those_of_one_process(cluster, alone):
    (*_, together), (*_, one) = epoch_ends(cluster[0]), epoch_ends(alone)
    assert one["validation"]["pctr"]["auc"] > 0.6
    assert together["validation"]["pctr"]["auc"] == pytest.approx(one["validation"]["pctr"]["auc"], abs=0.02)
    assert together["loss"] == pytest.approx(one["loss"], rel=0.02)


def test_one_process_goes_on_with_the_run(cluster, log, tmp_path, monkeypatch):
    workdir = pathlib.Path(shutil.copytree(cluster[0], tmp_path / "run"))
    monkeypatch.setattr(train, "check_export", lambda run: None)
    config = open_workdir(str(workdir)).config
    training = dataclasses.replace(config.training, epochs=EPOCHS + 1)
    longer = dataclasses.replace(config, training=training, distribution=DistributionConfig("one_device"))
    train_and_evaluate(longer, log.path, str(workdir))
    assert [line["step"] for line in epoch_ends(workdir)][-1] == (EPOCHS + 1) * EPOCH_STEPS
