"""Kills workers of a run at random moments, and compares its end with that of a run which nothing interrupts.

python benchmarks/chaos.py [--engine=local|ray] [--kills=20] [--workers=2] [--seed=0]

Each kill is a `kill -9` of a worker drawn at random, the chief among them: at a step drawn at random, while the next checkpoint
after it is being written, or while the workers start. Printed are the kills and the largest difference of a weight at the end,
where a row that was trained twice or never would show. Status 1 where it is above 1e-6.
"""

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import app, flags

from hm3_tf.workdir import open_workdir

_ENGINE = flags.DEFINE_string("engine", "local", "Of hm3 launch.")
_KILLS = flags.DEFINE_integer("kills", 20, "Kills.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Workers.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
HM3 = pathlib.Path(sys.executable).with_name("hm3")
CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "hm3.py"
ROWS, BATCH, EPOCHS = 60_000, 256, 3
STEPS = EPOCHS * -(-(ROWS * 5 // 7) // BATCH)  # five of seven days are for training
MOMENTS = ("step", "checkpoint", "start")
FIELDS = (
    "--config.model.tower_units=(16,8)",
    "--config.model.embedding_dim=8",
    "--config.model.dropout=0.0",
    f"--config.training.global_batch_size={BATCH}",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.log_every_steps=1",
    "--config.training.checkpoint_every_steps=10",
)


@contextlib.contextmanager
def launched(data: pathlib.Path, workdir: pathlib.Path) -> Iterator[subprocess.Popen]:
    """Yields a launch whose workers may be lost as often as they are killed; it is ended at the end of the block."""
    own = [f"--workers={_WORKERS.value}", f"--engine={_ENGINE.value}", f"--max_restarts={_KILLS.value}"]
    train = ["train", f"--config={CONFIG}", f"--data_dir={data}", f"--workdir={workdir}", *FIELDS]
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        process = subprocess.Popen([HM3, "launch", *own, "--", *train], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def workers_of(launch: subprocess.Popen) -> list[int]:
    """Returns the ids of the processes that train: of its descendants those with a command of theirs."""
    found, waiting = [], [launch.pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if pid != launch.pid and re.search(r"-m hm3_tf(\.launched)? train|ray::.*TrainWorker", command):
                found.append(pid)
    return found


def last_step(workdir: pathlib.Path) -> int:
    """Returns the last step in the log of a run."""
    with contextlib.suppress(FileNotFoundError):
        return max(
            map(int, re.findall(r'^{"step": (\d+)', (workdir / "metrics.jsonl").read_text(), re.MULTILINE)), default=0
        )
    return 0


def being_written(workdir: pathlib.Path) -> set[str]:
    """Returns the checkpoints that are being written, and those that a kill left half-written."""
    with contextlib.suppress(FileNotFoundError):
        return {entry.name for entry in os.scandir(workdir / "checkpoints") if "_temp" in entry.name}
    return set()


def wait_for(moment: str, step: int, process: subprocess.Popen, workdir: pathlib.Path) -> list[int]:
    """Waits until it is time to kill; returns the ids of the workers."""
    left = being_written(workdir)
    while process.poll() is None:
        workers = workers_of(process)
        if not workers or (moment != "start" and last_step(workdir) < step):
            time.sleep(0.001)
            continue
        end = time.monotonic() + 0.5  # then the workers are looked for again
        while moment == "checkpoint" and not being_written(workdir) - left and time.monotonic() < end:
            pass
        if moment != "checkpoint" or being_written(workdir) - left:
            return workers
    raise RuntimeError(f"the launch ended with status {process.returncode} before all kills")


def torment(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Kills workers until all kills are done, and prints what was killed when."""
    generator = random.Random(_SEED.value)
    for step in sorted(generator.sample(range(1, STEPS - BATCH // 16), _KILLS.value)):
        moment = generator.choice(MOMENTS)
        time.sleep(generator.uniform(0, 10) if moment == "start" else 0)
        left = being_written(workdir)
        workers = wait_for(moment, step, process, workdir)
        victim = generator.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        half = "; a checkpoint was half-written" if being_written(workdir) - left else ""
        print(f"{moment}: one of {len(workers)} workers at step {last_step(workdir)}{half}", flush=True)
        while victim in workers_of(process):
            time.sleep(0.01)


def latest_weights(workdir: pathlib.Path) -> list[np.ndarray]:
    """Returns the weights at the end of a run."""
    model = open_workdir(str(workdir)).build_model()
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    tf.train.Checkpoint(network=model.network).restore(latest).expect_partial()
    return model.network.get_weights()


def main(_: list[str]) -> None:
    """Prints the kills and the comparison."""
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        data = folder / "data"
        subprocess.run([HM3, "simulate", f"--output_dir={data}", f"--rows={ROWS}"], check=True, capture_output=True)
        with launched(data, folder / "whole") as process:
            assert process.wait() == 0, (folder / "whole.log").read_text()[-3000:]
        start = time.monotonic()
        with launched(data, folder / "killed") as process:
            torment(process, folder / "killed")
            assert process.wait() == 0, (folder / "killed.log").read_text()[-3000:]
        pairs = zip(latest_weights(folder / "whole"), latest_weights(folder / "killed"), strict=True)
        largest = max(float(np.abs(whole - killed).max()) for whole, killed in pairs)
        print(f"{_KILLS.value} kills in {time.monotonic() - start:.0f} s; {STEPS} steps")
        print(f"largest difference of a weight from the run without kills: {largest:.1e}")
        if largest > 1e-6:
            raise SystemExit(1)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
