"""The cluster of a Slurm step, from the variables that srun sets for each task."""

import json
import os

import pytest

from hm3_tf.cluster import read_cluster
from hm3_tf.errors import Hm3Error

PORT = 10_000 + 234 * 16  # of job 1234


def tf_config_of_task(monkeypatch, **variables) -> dict:
    """Returns the TF_CONFIG that TensorFlow finds in a task whose step has these variables: SLURM_JOB_ID=..., ..."""
    for name in [name for name in os.environ if name.startswith("SLURM") or name == "TF_CONFIG"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    read_cluster()
    return json.loads(os.environ["TF_CONFIG"])


def step(tasks: list[tuple[str, int]], nodes: str, tasks_per_node: str, rank: int) -> dict[str, str]:
    """Returns the variables of a task, one of [(node, number on the node), ...] in the order of their ranks."""
    node, number = tasks[rank]
    return {
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_STEP_NUM_TASKS": str(len(tasks)),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(number),
        "SLURMD_NODENAME": node,
    }


STEPS = {
    "a task a node": ([("gpu01", 0), ("gpu02", 0), ("gpu03", 0)], "gpu[01-03]", "1(x3)"),
    "names that sort otherwise as text": ([("n9", 0), ("n10", 0), ("n11", 0)], "n[9-11]", "1(x3)"),
    "several tasks a node": ([("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)], "a,b,c", "2(x2),1"),
    "dealt out in turn": ([("a", 0), ("b", 0), ("a", 1), ("b", 1)], "a,b", "2(x2)"),
}


@pytest.mark.parametrize(("tasks", "nodes", "tasks_per_node"), STEPS.values(), ids=STEPS)
def test_each_task_of_a_step_finds_its_own_address_in_one_cluster(monkeypatch, tasks, nodes, tasks_per_node):
    configs = [tf_config_of_task(monkeypatch, **step(tasks, nodes, tasks_per_node, rank)) for rank in range(len(tasks))]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in configs}
    for (node, number), config in zip(tasks, configs):
        assert config["task"]["type"] == "worker"
        assert addresses[config["task"]["index"]] == f"{node}:{PORT + number}"
    assert sorted(config["task"]["index"] for config in configs) == list(range(len(tasks)))


@pytest.mark.parametrize("devices", [None, "", "0,1"])
def test_the_gpus_that_slurm_gives_a_task_are_left_as_they_are(monkeypatch, devices):
    if devices is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    tf_config_of_task(monkeypatch, **step([("a", 0), ("a", 1)], "a", "2", rank=1))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == devices


def test_tf_config_goes_before_the_variables_of_slurm(monkeypatch):
    given = {"cluster": {"worker": [f"127.0.0.1:{PORT}"]}, "task": {"type": "worker", "index": 0}}
    variables = step([("a", 0), ("b", 0)], "a,b", "1(x2)", rank=1)
    assert tf_config_of_task(monkeypatch, TF_CONFIG=json.dumps(given), **variables) == given


@pytest.mark.parametrize("missing", ["SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "SLURMD_NODENAME"])
def test_a_process_that_srun_did_not_start_is_told_so(monkeypatch, missing):
    variables = step([("a", 0), ("b", 0)], "a,b", "1(x2)", rank=1)
    del variables[missing]
    with pytest.raises(
        Hm3Error, match=rf"expected a task of a Slurm step in job 1234, got .*{missing}.*; start .* srun"
    ):
        tf_config_of_task(monkeypatch, **variables)


def test_a_task_on_a_node_that_the_step_does_not_name_is_refused(monkeypatch):
    variables = {**step([("a", 0), ("b", 0)], "a,b", "1(x2)", rank=1), "SLURMD_NODENAME": "c"}
    with pytest.raises(Hm3Error, match="got ValueError.*not in tuple"):
        tf_config_of_task(monkeypatch, **variables)
