"""Workers of `hm3 launch` that are killed or told to end go on as if nothing had happened; what cannot start says why."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.convert import convert
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf.cluster import Cluster, free_addresses
from hm3_tf.workdir import open_workdir

PATIENCE_S = 300
CONFIG = [
    f"--config={pathlib.Path(__file__).parents[2]}/configs/hm3.py",
    "--config.model.tower_units=(8,4)",
    "--config.model.embedding_dim=4",
    "--config.model.dropout=0.25",
    "--config.model.features=('position','user_id','item_id','brand','price')",
    "--config.training.global_batch_size=256",
    "--config.training.epochs=3",
    "--config.training.log_every_steps=1",
    "--config.training.checkpoint_every_steps=4",
]
STEPS = 3 * 17  # 4,286 rows in batches of 256


def start(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    variables = {**inherited, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONUNBUFFERED": "1", **(environment or {})}
    command = [sys.executable, "-m", "hm3_tf", *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextlib.contextmanager
def launched(data, workdir):
    """Yields `hm3 launch` of two workers; none of them is left at the end of the block."""
    flags = [*CONFIG, f"--data_dir={data}", f"--workdir={workdir}"]
    process = start(["launch", "--workers=2", "--max_restarts=1", "--", "train", *flags])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)


def steps(workdir) -> list[int]:
    """Returns the steps in the log of a run that may be writing it."""
    with contextlib.suppress(FileNotFoundError):
        text = (workdir / "metrics.jsonl").read_text()
        return [int(step) for step in re.findall(r'"step": (\d+), "epoch": \d+, "loss"', text)]
    return []


def wait_for_step(workdir, process, step: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while max(steps(workdir), default=0) < step:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-3000:]
        time.sleep(0.002)


def worker(launch: subprocess.Popen, index: int) -> int:
    """Returns the id of a worker's process."""
    children = pathlib.Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    for pid in map(int, children):
        variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        task = next(json.loads(v.partition(b"=")[2])["task"] for v in variables if v.startswith(b"TF_CONFIG="))
        if task["index"] == index:
            return pid
    raise AssertionError(f"no worker {index} among {children}")


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    """The weights at the end of a run of two workers that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    with launched(data.path, workdir) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output[-3000:]
    return latest_weights(workdir)


def latest_weights(workdir) -> list[np.ndarray]:
    model = open_workdir(str(workdir)).build_model()
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    tf.train.Checkpoint(network=model.network).restore(latest).expect_partial()
    return model.network.get_weights()


def test_workers_that_are_killed_and_told_to_end_go_on_as_if_they_had_not_been(data, weights, tmp_path):
    with launched(data.path, tmp_path) as process:
        wait_for_step(tmp_path, process, 10)
        os.kill(worker(process, 0), signal.SIGKILL)  # the chief, which writes the checkpoints
        wait_for_step(tmp_path, process, 25)
        told = time.monotonic()
        os.kill(worker(process, 1), signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, output[-3000:]
    print(f"ended {time.monotonic() - told:.1f} s after SIGTERM")
    assert re.search(r"lost workers, ended: worker 0 with SIGKILL.* \(start 1 of 2\)", output)
    stopped = int(re.search(r"told to end \(SIGTERM\) at step (\d+), whose checkpoint is written", output)[1])
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith(f"ckpt-{stopped}")
    assert max(steps(tmp_path)) == stopped < STEPS
    with launched(data.path, tmp_path) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output[-3000:]
    assert f"resuming at step {stopped} from" in output
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "epoch_end" not in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "epoch_end" in line] == [17, 34, 51]
    for found, expected in zip(latest_weights(tmp_path), weights, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def ended(flags: dict[int, list[str]]) -> dict[int, tuple[int, str]]:
    """Returns the status and the output of each worker of a cluster of two."""
    addresses = free_addresses(2)
    multi = "--config.distribution.strategy=multi_worker"
    processes = {
        i: start(["train", *CONFIG, multi, *own], Cluster(addresses, i).environment) for i, own in flags.items()
    }
    try:
        return {
            i: (process.communicate(timeout=PATIENCE_S)[0], process.returncode)[::-1]
            for i, process in processes.items()
        }
    finally:
        for process in processes.values():
            process.kill()


def the_error(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("hm3: error: "))


def test_a_worker_that_does_not_come_is_named(data, tmp_path):
    own = [f"--data_dir={data.path}", f"--workdir={tmp_path}", "--config.distribution.start_seconds=1"]
    ((status, output),) = ended({0: own}).values()
    assert status == 69
    assert re.search(
        r"expected all 2 workers within 1 s, but worker 1 \(127.0.0.1:\d+\) did not answer", the_error(output)
    )


def test_workers_that_share_no_workdir_or_read_other_logs_or_configs_are_told_so(data, tmp_path):
    mine = [f"--data_dir={data.path}", f"--workdir={tmp_path}/mine"]
    found = ended({0: mine, 1: [f"--data_dir={data.path}", f"--workdir={tmp_path}/yours"]})
    assert [status for status, _ in found.values()] == [1, 1]
    for _, output in found.values():
        assert "that all workers share, but workers [1] do not see what worker 0 wrote into it" in the_error(output)
    log = SimulatedLog(rows=3_000, users=300, items=300)
    convert(SimulatedSource(log), str(tmp_path / "other"), day_split())
    found = ended({0: mine, 1: [f"--data_dir={tmp_path}/other", f"--workdir={tmp_path}/mine"]})
    assert [status for status, _ in found.values()] == [1, 1]
    for _, output in found.values():
        assert "expected the same log on all workers, but that of workers [1] differs" in the_error(output)
    found = ended({0: mine, 1: [*mine, "--config.training.log_every_steps=2"]})
    assert [status for status, _ in found.values()] == [1, 1]
    for _, output in found.values():
        assert "expected the same config on all workers, but that of workers [1] differs" in the_error(output)
