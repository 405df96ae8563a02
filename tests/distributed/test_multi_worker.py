"""Two and four processes on this machine, and two replicas of one, against one process with the same global batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hm3_tf.cluster import Cluster, free_addresses

TIMEOUT_S = 400
METHODS = ("hm3", "gmcm", "base")
STEPS = 3 * 17  # 4,286 rows in batches of 256, three times
SEVERAL = {"mirrored": "mirrored", "two": "two.0", "four": "four.0"}  # {run: whose weights}


def start(
    data: str, strategy: str, folder: str, name: str, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    variables = {**inherited, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    command = [sys.executable, "-m", "tests.distributed.worker", ",".join(METHODS), data, strategy, folder, name]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_to_end(processes: list[subprocess.Popen]) -> None:
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of each method by one process, two replicas, two workers and four, with the weights of all."""
    folder = tmp_path_factory.mktemp("runs")
    run_to_end([start(data.path, name, str(folder), name) for name in ("one_device", "mirrored")])
    for name, count in {"two": 2, "four": 4}.items():
        addresses = free_addresses(count)
        workers = [Cluster(addresses, index).environment for index in range(count)]
        run_to_end([start(data.path, "multi_worker", str(folder), f"{name}.{i}", w) for i, w in enumerate(workers)])
    return folder


def intervals(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "epoch_end" not in line]


def losses(workdir) -> list[float]:
    return [line["loss"] for line in intervals(workdir)]


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("method", METHODS)
def test_several_replicas_have_the_losses_of_one_at_every_step(runs, method, name):
    alone, together = losses(runs / f"{method}-one_device"), losses(runs / f"{method}-{name}")
    assert len(alone) == len(together) == STEPS
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("method", METHODS)
def test_several_replicas_end_with_the_weights_of_one(runs, method, name):
    alone, together = np.load(runs / f"{method}-one_device.npz"), np.load(runs / f"{method}-{SEVERAL[name]}.npz")
    for weight in alone.files:
        np.testing.assert_allclose(together[weight], alone[weight], atol=1e-5, rtol=0, err_msg=weight)


@pytest.mark.parametrize("method", METHODS)
def test_all_workers_end_with_identical_weights(runs, method):
    first, *others = (np.load(runs / f"{method}-four.{worker}.npz") for worker in range(4))
    for other in others:
        for name in first.files:
            np.testing.assert_array_equal(first[name], other[name], err_msg=name)


def test_replicas_write_how_few_bytes_of_gradients_of_tables_they_send(runs):
    assert not any("bytes_exchanged" in line for line in intervals(runs / "hm3-one_device"))
    for workdir in (runs / "hm3-two", runs / "hm3-mirrored"):
        sent = [line["bytes_exchanged"] for line in intervals(workdir)]
        # 256 rows look up at least 4 ids, of which each is at most a row of 20 bytes: 4 floats and its number.
        assert len(sent) == STEPS and min(sent) > 0 and max(sent) < 256 * 4 * 20


def test_only_the_chief_writes_and_the_run_can_be_opened(runs):
    from hm3_tf.workdir import open_workdir

    run = open_workdir(str(runs / "hm3-two"))
    assert run.config.distribution.strategy == "multi_worker"
    assert run.trained_model().network.get_weights()


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_workers_that_share_the_rows_have_the_figures_of_one_process(runs, method, worker):
    together, alone = json.loads((runs / f"{method}-two.{worker}.json").read_text())
    assert together["pctr"]["rows"] == 857
    assert set(together["pcvr"]) == set(alone["pcvr"])
    for target in ("pctr", "pcvr", "pctcvr"):
        for name, value in alone[target].items():
            expected = None if value is None else pytest.approx(value, rel=1e-6)
            assert together[target][name] == expected, (target, name)
