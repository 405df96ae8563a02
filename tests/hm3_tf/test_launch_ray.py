"""The launcher on Ray: whom it starts again, with which status it ends, and that nothing is left behind.

One test has real workers, one of them killed; those of the others are a small program in place of `hm3`.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf import launch_ray
from hm3_tf.cli import _status
from hm3_tf.errors import Hm3Error, LostWorkerError, PreemptionError
from hm3_tf.launch_ray import launch_on_ray
from hm3_tf.ray_session import connected
from hm3_tf.workdir import open_workdir

PATIENCE_S = 300
PROGRAM = """
    import json, os, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[2])
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    start = len(list(folder.glob(f"{index}-*")))
    (folder / f"{index}-{start}").write_text(json.dumps([os.getpid(), os.getppid(), os.getcwd(), sys.argv[1:]]))

    def saved(*_):
        (folder / f"saved-{index}").touch()
        sys.exit(75)
"""


@pytest.fixture(scope="module")
def ray():
    """One Ray for the tests of the file."""
    with connected(None, 2) as ray:
        yield ray


@pytest.fixture
def workers(tmp_path, monkeypatch, ray):
    """Returns a function that has two workers run a program, which writes a file `<index>-<start>` a process."""

    def run(body: str, max_restarts: int) -> None:
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(body))
        monkeypatch.setattr(launch_ray, "_PROGRAM", (str(program),))
        launch_on_ray(["train", str(tmp_path)], 2, max_restarts, str(tmp_path / "workdir"))

    return run


def started(folder: pathlib.Path) -> dict[str, list]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("[0-9]-*")}


def test_a_launch_ends_when_its_workers_are_lost_more_often_than_asked(workers, tmp_path, capsys):
    body = """
        print(f"line of {index}")
        if index == 1: os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(69)
    """
    with pytest.raises(
        LostWorkerError, match="within 0 restarts, ended: worker 0 with status 69, worker 1 with SIGKILL"
    ):
        workers(body, max_restarts=0)
    found = started(tmp_path)
    assert set(found) == {"0-0", "1-0"}
    for *_, folder, arguments in found.values():
        assert folder == os.getcwd()
        assert arguments == ["train", str(tmp_path), "--config.distribution.strategy=multi_worker"]
    assert sorted(capsys.readouterr().out.splitlines()) == ["[worker 0] line of 0", "[worker 1] line of 1"]


def test_what_a_start_cannot_mend_ends_the_launch_at_once_and_with_it_the_other_worker(workers, tmp_path):
    with pytest.raises(Hm3Error, match="expected all workers to end well, ended: worker 0 with status 1;"):
        workers("sys.exit(1) if index == 0 else time.sleep(1)", max_restarts=3)
    assert len(started(tmp_path)) == 2


CONFIG = [
    f"--config={pathlib.Path(__file__).parents[2]}/configs/hm3.py",
    "--config.model.tower_units=(8,4)",
    "--config.model.embedding_dim=4",
    "--config.model.dropout=0.0",
    "--config.model.features=('position','user_id','item_id','brand','price')",
    "--config.training.global_batch_size=256",
    "--config.training.epochs=1",
    "--config.training.log_every_steps=1",
    "--config.training.checkpoint_every_steps=4",
]


def logged(workdir: pathlib.Path) -> list[int]:
    """Returns the steps in the log of a run that may be writing it."""
    with contextlib.suppress(FileNotFoundError):
        text = (workdir / "metrics.jsonl").read_text()
        return [int(step) for step in re.findall(r'"step": (\d+), "epoch": \d+, "loss"', text)]
    return []


def of_run(workdir: pathlib.Path) -> list[int]:
    """Returns the ids of Ray's workers, whose processes train in a workdir: of the parents of these."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().split(b"\0")
            if b"hm3_tf.launched" in command and f"--workdir={workdir}".encode() in command:
                found.append(int(path.with_name("stat").read_text().rpartition(")")[2].split()[1]))
    return found


def kill_one_at_step(step: int, workdir: pathlib.Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while max(logged(workdir), default=0) < step and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(of_run(workdir)[0], signal.SIGKILL)


def latest_weights(workdir: pathlib.Path) -> list[np.ndarray]:
    model = open_workdir(str(workdir)).build_model()
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    tf.train.Checkpoint(network=model.network).restore(latest).expect_partial()
    return model.network.get_weights()


def test_a_run_whose_worker_is_killed_ends_with_the_weights_of_one_that_nothing_interrupts(data, tmp_path, ray, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train = ["train", *CONFIG, f"--data_dir={data.path}"]
    killer = threading.Thread(target=kill_one_at_step, args=(6, killed))
    killer.start()
    launch_on_ray([*train, f"--workdir={killed}"], 2, 1, str(killed))
    killer.join()
    output = capsys.readouterr().out
    assert re.search(r"^lost workers, ended: .* \(start 2 begins\)$", output, re.MULTILINE)
    assert 4 <= int(re.search(r"\[worker 0\] resuming at step (\d+)", output)[1]) < 17
    assert logged(killed) == list(range(1, 17 + 1))
    assert _status([*train, f"--workdir={whole}"]) == 0
    for found, expected in zip(latest_weights(killed), latest_weights(whole), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


LAUNCH = """
    import sys
    sys.path.insert(0, {root!r})
    from hm3_tf import launch_ray
    from hm3_tf.errors import Hm3Error
    launch_ray._PROGRAM = ({program!r},)
    try:
        launch_ray.launch_on_ray(["train", {folder!r}], 2, 3, {folder!r})
    except Hm3Error as error:
        sys.exit(error.status)
"""


def test_workers_save_and_nothing_is_left_of_ray_when_the_launch_is_told_to_end(tmp_path):
    program = tmp_path / "program.py"
    body = "signal.signal(signal.SIGTERM, saved)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    program.write_text(textwrap.dedent(PROGRAM) + body)
    root = str(pathlib.Path(launch_ray.__file__).parents[1])
    code = textwrap.dedent(LAUNCH).format(root=root, program=str(program), folder=str(tmp_path))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory() as temporary:  # not below tmp_path: names of sockets are short
        environment = {**kept, "TMPDIR": temporary}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[worker 0] ready\n", "[worker 1] ready\n"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == PreemptionError.status
        assert not [name for name in os.listdir(temporary) if name.startswith("hm3-ray-")]
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()
    for pid, ray_worker, *_ in started(tmp_path).values():
        assert not pathlib.Path(f"/proc/{pid}").exists() and not pathlib.Path(f"/proc/{ray_worker}").exists()
