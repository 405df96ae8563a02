"""Two processes on this machine under MultiWorkerMirroredStrategy against one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

TIMEOUT_S = 240


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(arguments: list[str], tf_config: dict | None) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_CONFIG", None)
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    command = [sys.executable, "-m", "tests.distributed.worker", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_to_end(processes: list[subprocess.Popen]) -> None:
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def intervals(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "epoch_end" not in line]


def losses(workdir) -> list[float]:
    return [line["loss"] for line in intervals(workdir)]


@pytest.fixture(scope="module", params=["hm3", "gmcm"])
def runs(request, data, tmp_path_factory):
    """A run of one process and the same run of two, with the weights of all; GMCM adds up counts over replicas in its loss."""
    method = request.param
    folder = tmp_path_factory.mktemp("runs")
    one = [method, data.path, str(folder / "one"), "one_device", str(folder / "one.npz")]
    mirrored = [method, data.path, str(folder / "mirrored"), "mirrored", str(folder / "mirrored.npz")]
    run_to_end([start(one, None), start(mirrored, None)])
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        arguments = [method, data.path, str(folder / "two"), "multi_worker", str(folder / f"two_{index}.npz")]
        workers.append(start(arguments, task))
    run_to_end(workers)
    return folder


def test_two_workers_have_the_losses_of_one_at_every_step(runs):
    alone, together = losses(runs / "one"), losses(runs / "two")
    assert len(alone) == len(together) == 2 * 9  # 4,286 rows in batches of 512, twice
    assert together == pytest.approx(alone, abs=1e-5)


def test_two_replicas_of_one_process_have_the_losses_of_one_at_every_step(runs):
    alone, together = losses(runs / "one"), losses(runs / "mirrored")
    assert len(alone) == len(together) == 2 * 9
    assert together == pytest.approx(alone, abs=1e-5)


def test_both_workers_end_with_identical_weights(runs):
    first, second = np.load(runs / "two_0.npz"), np.load(runs / "two_1.npz")
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_two_workers_end_with_the_weights_of_one_but_for_rounding(runs):
    alone, together = np.load(runs / "one.npz"), np.load(runs / "two_0.npz")
    assert together["validation_auc"] == pytest.approx(alone["validation_auc"], abs=1e-3)
    for name in set(alone.files) - {"validation_auc"}:
        # Adam divides by the size of a gradient, so where that is rounding alone, single weights take other steps.
        assert np.abs(together[name] - alone[name]).mean() < 1e-5, name


def test_replicas_write_how_few_bytes_of_gradients_of_tables_they_send(runs):
    assert not any("bytes_exchanged" in line for line in intervals(runs / "one"))
    for workdir in (runs / "two", runs / "mirrored"):
        sent = [line["bytes_exchanged"] for line in intervals(workdir)]
        # 256 rows look up at least 4 ids, of which each is at most a row of 20 bytes: 4 floats and its number.
        assert len(sent) == 2 * 9 and min(sent) > 0 and max(sent) < 256 * 4 * 20


def test_only_the_chief_writes_and_the_run_can_be_opened(runs):
    from hm3_tf.workdir import open_workdir

    run = open_workdir(str(runs / "two"))
    assert run.config.distribution.strategy == "multi_worker"
    assert run.trained_model().network.get_weights()


@pytest.mark.parametrize("worker", [0, 1])
def test_workers_that_share_the_rows_have_the_figures_of_one_process(runs, worker):
    together, alone = json.loads((runs / f"two_{worker}.json").read_text())
    assert together["pctr"]["rows"] == 857
    assert set(together["pcvr"]) == set(alone["pcvr"])
    for target in ("pctr", "pcvr", "pctcvr"):
        for name, value in alone[target].items():
            expected = None if value is None else pytest.approx(value, rel=1e-6)
            assert together[target][name] == expected, (target, name)
