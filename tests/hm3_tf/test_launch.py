"""The launcher: what it starts, whom it starts again, with which status it ends, and that nothing is left behind.

Its workers are a small program in place of `hm3`; tests/distributed has the real ones.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hm3_tf import launch as launcher
from hm3_tf.cli import _status
from hm3_tf.errors import Hm3Error, LostWorkerError, PreemptionError, UsageError
from hm3_tf.launch import launch

PATIENCE_S = 60
PROGRAM = """
    import json, os, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[2])
    task = json.loads(os.environ["TF_CONFIG"])
    index, cluster, job = task["task"]["index"], task["cluster"]["worker"], task["task"]["type"]
    index = index if job == "worker" else f"{job}{index}"
    start = len(list(folder.glob(f"{index}-*")))
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    (folder / f"{index}-{start}").write_text(json.dumps([os.getpid(), cluster, sys.argv, devices]))

    def saved(*_):
        (folder / f"saved-{index}").touch()
        sys.exit(75)
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Returns a function that has workers run a program and returns its folder: a file `<index>-<start>` a process."""

    def run(body: str, count: int = 2, max_restarts: int = 0, servers: int = 0) -> None:
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(body))
        monkeypatch.setattr(launcher, "_PROGRAM", (sys.executable, str(program)))
        monkeypatch.setattr(launcher, "OTHERS_END_S", 0.5)
        launch(["train", str(tmp_path), "--flag=a b"], count, max_restarts, servers)

    run.folder = tmp_path
    return run


def started(folder) -> dict[str, list]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("[0-9]-*")}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_worker_gets_its_place_in_one_cluster_and_the_command(workers):
    workers("", count=3)
    found = started(workers.folder)
    assert set(found) == {"0-0", "1-0", "2-0"}
    clusters = [cluster for _, cluster, *_ in found.values()]
    assert len(set(clusters[0])) == 3 and clusters[0] == clusters[1] == clusters[2]
    for _, _, arguments, _ in found.values():
        assert arguments[1:] == [
            "train",
            str(workers.folder),
            "--flag=a b",
            "--config.distribution.strategy=multi_worker",
        ]


def test_lines_are_printed_with_the_number_of_the_worker(workers, capsys):
    workers("print(f'line of {index}'); print('second', file=sys.stderr)")
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[worker 0] line of 0",
        "[worker 0] second",
        "[worker 1] line of 1",
        "[worker 1] second",
    ]


LOST = "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(69)", "os.abort()"


@pytest.mark.parametrize("end", LOST)
def test_all_start_again_when_one_is_lost(workers, end):
    workers(
        f"if index == 1 and start == 0: {end}\nif index == 0 and start == 0: time.sleep({PATIENCE_S})", max_restarts=1
    )
    assert set(started(workers.folder)) == {"0-0", "0-1", "1-0", "1-1"}


def test_no_more_starts_than_asked(workers):
    with pytest.raises(LostWorkerError, match="within 2 restarts, ended: worker 1 with SIGKILL"):
        workers(f"if index == 1: {LOST[0]}", max_restarts=2)
    assert len(started(workers.folder)) == 2 * 3


@pytest.mark.parametrize("status", [1, 2])
@pytest.mark.parametrize("other", [0, 69])
def test_what_a_start_cannot_mend_is_not_started_again(workers, status, other):
    with pytest.raises(Hm3Error, match=f"expected all workers to end well, ended: worker 0 with status {status}"):
        workers(f"sys.exit({status} if index == 0 else {other})", max_restarts=3)
    assert len(started(workers.folder)) == 2


def test_a_worker_told_to_end_ends_the_launch_with_a_status_of_its_own(workers):
    body = "signal.signal(signal.SIGTERM, saved)\nif index == 1: os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(1)\nsaved()"
    with pytest.raises(PreemptionError) as error:
        workers(body, max_restarts=3)
    assert error.value.status == 75
    assert (workers.folder / "saved-0").exists() and len(started(workers.folder)) == 2


# The chief ends when all have come and a file is there; all others go on until they are ended.
OF_SERVERS = f"""
    if job == "chief":
        count = sum(map(len, task["cluster"].values()))
        while not ((folder / "done").exists() and len(list(folder.glob("*-0"))) == count): time.sleep(0.05)
        sys.exit()
    if job == "worker" and index == 1 and start == 1: (folder / "done").touch()
    {{}}
    time.sleep({PATIENCE_S})
"""


def starts(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*-[0-9]"))


ONCE = ["0-0", "1-0", "chief0-0", "ps0-0", "ps1-0"]


@pytest.mark.parametrize("end", LOST)
def test_a_worker_of_servers_starts_again_alone_and_the_chief_ends_all(workers, end):
    workers(OF_SERVERS.format(f"if index == 1 and start == 0: {end}"), max_restarts=1, servers=2)
    assert starts(workers.folder) == sorted([*ONCE, "1-1"])
    assert not any(is_running(pid) for pid, *_ in started(workers.folder).values())


@pytest.mark.parametrize("lost", ["ps", "chief"])
def test_all_start_again_when_a_server_or_the_chief_is_lost(workers, lost):
    others = "all((folder / f'{i}-0').exists() for i in range(2))"
    end = f"""
    if job == "{lost}" and start == 0:
        while not {others}: time.sleep(0.05)
        {LOST[0]}"""
    workers(end + OF_SERVERS.format(""), max_restarts=1, servers=1)
    assert {"0-1", "1-1", "chief0-1", "ps0-1"} >= set(starts(workers.folder)) - set(ONCE)
    assert {"chief0-1", "1-1"} <= set(starts(workers.folder))


def test_workers_of_servers_are_not_started_more_often_than_asked(workers):
    with pytest.raises(LostWorkerError, match="within 1 restarts, ended: worker 0 with SIGKILL"):
        workers(OF_SERVERS.format(f"if index == 0: {LOST[0]}"), max_restarts=1, servers=1)
    assert "0-1" in starts(workers.folder) and "0-2" not in starts(workers.folder)


def test_the_gpus_are_those_of_the_workers_alone(workers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    workers(OF_SERVERS.format("if index == 0: (folder / 'done').touch()"), servers=1)
    found = {name: json.loads((workers.folder / name).read_text())[3] for name in ("0-0", "1-0", "chief0-0", "ps0-0")}
    assert found == {"0-0": "0", "1-0": "1", "chief0-0": "-1", "ps0-0": "-1"}


def test_workers_that_do_not_end_when_told_leave_no_launch_that_ended_well(workers, monkeypatch):
    monkeypatch.setattr(launcher, "SAVED_S", 1.0)
    body = f"""
        if index == 1: sys.exit(75)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep({PATIENCE_S})
    """
    with pytest.raises(PreemptionError, match="worker 0 with SIGKILL, worker 1 with status 75"):
        workers(body)


LAUNCH = """
    import pathlib, sys
    sys.path.insert(0, {root!r})
    from hm3_tf import launch
    from hm3_tf.errors import Hm3Error
    launch._PROGRAM = (sys.executable, {program!r})
    try:
        launch.launch(["train", {folder!r}], 2, 3)
    except Hm3Error as error:
        sys.exit(error.status)
"""


@pytest.mark.parametrize(
    "number, status, saves",
    [(signal.SIGINT, -signal.SIGINT, False), (signal.SIGTERM, 75, True)],
    ids=["ctrl-c", "term"],
)
def test_nothing_is_left_when_the_launch_is_told_to_end(tmp_path, number, status, saves):
    program = tmp_path / "program.py"
    child = f"""
        signal.signal(signal.SIGTERM, saved)
        import subprocess
        if index == 0: (folder / "child").write_text(str(subprocess.Popen(["sleep", "{PATIENCE_S}"]).pid))
        print("ready", flush=True)
        time.sleep({PATIENCE_S})
    """
    program.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(child))
    root = os.path.dirname(os.path.dirname(launcher.__file__))
    code = textwrap.dedent(LAUNCH).format(root=root, program=str(program), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[worker 0] ready\n", "[worker 1] ready\n"]
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    pids = [pid for pid, *_ in started(tmp_path).values()]
    assert len(pids) == 2 and not any(map(is_running, pids))
    assert [(tmp_path / f"saved-{i}").exists() for i in range(2)] == [saves, saves]
    child_state = pathlib.Path("/proc", (tmp_path / "child").read_text(), "stat")
    end = time.monotonic() + PATIENCE_S
    while child_state.exists() and child_state.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert not child_state.exists() or child_state.read_text().split()[2] == "Z"  # dead, whoever is to reap it


@pytest.mark.parametrize("devices, expected", [("0,1,2,3", ["0,1", "2,3"]), ("", ["", ""]), ("-1", ["-1", "-1"])])
def test_gpus_are_shared_out(workers, monkeypatch, devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    workers("")
    assert [started(workers.folder)[f"{i}-0"][3] for i in range(2)] == expected


def test_gpus_are_named_as_cuda_counts_them(workers, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launcher.glob, "glob", lambda pattern: ["/dev/nvidia10", "/dev/nvidia2"])  # of a container
    workers("")
    assert [started(workers.folder)[f"{i}-0"][3] for i in range(2)] == ["0", "1"]


def test_gpus_that_cannot_be_shared_out_are_refused(workers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UsageError, match="--workers: expected a divisor of the 3 GPUs"):
        workers("")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workers=2"], "expected `-- train --flags`"),
        (["--workers=2", "--", "evaluate", "--workdir=w"], "expected `-- train --flags`"),
        (["--", "train"], "expected --workers"),
        (["--workers=0", "--", "train"], "--workers=0"),
        (["--workers=2", "--", "train", "--workdir=w"], "expected --config, --data_dir"),
        (["--workers=2", "--engine=ssh", "--", "train"], "--engine=ssh"),
        (["--workers=2", "--ray_address=auto", "--", "train"], "--ray_address: expected --engine=ray"),
    ],
)
def test_a_command_that_cannot_be_launched_is_a_usage_error(capsys, arguments, message):
    assert _status(["launch", *arguments]) == 2
    assert message in capsys.readouterr().err
