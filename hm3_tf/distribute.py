"""Replicas: the strategy of a run, and the one place where TF_CONFIG and the variables of Slurm are read."""

import json
import os
import socket
from typing import Any

import numpy as np
import tensorflow as tf

from hm3_tf.errors import Hm3Error

_JOBS = ("chief", "worker")  # that train; the first of them is the chief
_REMEDY = (
    'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": n}}, the same cluster and '
    "another index on each worker"
)


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a run.

    Args:
      name: `one_device`, `mirrored` (all GPUs of this machine) or `multi_worker` (of the cluster in TF_CONFIG, or else
        the tasks of the Slurm step).

    Returns:
      The strategy.

    Raises:
      Hm3Error: `multi_worker` without a usable TF_CONFIG or Slurm step, or its port is taken.
    """
    if name != "multi_worker":
        _refuse_idle_cluster(name)
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        if "SLURM_JOB_ID" in os.environ and not os.environ.get("TF_CONFIG"):
            os.environ["TF_CONFIG"] = json.dumps(_slurm_tf_config())
        _check_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0")


def _refuse_idle_cluster(name: str) -> None:
    """Refuses a strategy of one machine where TF_CONFIG names several: each would train the whole log by itself."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")["cluster"]
        tasks = sum(len(cluster.get(job, ())) for job in _JOBS)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return
    if tasks > 1:
        raise Hm3Error(
            f"distribution.strategy={name}: expected no cluster, but TF_CONFIG names one of {tasks} tasks; set "
            "--config.distribution.strategy=multi_worker, or unset TF_CONFIG"
        )


def _slurm_tf_config() -> dict[str, Any]:
    """Returns the TF_CONFIG that the variables of this task's Slurm step stand for.

    Jobs that share a node have ports of their own, 16 each, below those that Linux hands out. Slurm binds the GPUs: the
    resolver would count them by nvidia-smi, fails where there are none, and is told one a task instead.

    Raises:
      Hm3Error: This process was not started by srun.
    """
    job = int(os.environ["SLURM_JOB_ID"])
    port = 10_000 + job % 1_000 * 16
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port, gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]), gpus_per_task=1, auto_set_gpu=False
        )
        cluster = resolver.cluster_spec().as_dict()
        own = f"{os.environ['SLURMD_NODENAME']}:{port + int(os.environ['SLURM_LOCALID'])}"
        # Not the resolver's own index: it sorts the nodes as text, n10 before n9, and takes the tasks to be in that order.
        index = cluster["worker"].index(own)
    except (KeyError, ValueError, RuntimeError) as error:
        raise Hm3Error(
            f"distribution.strategy=multi_worker: expected a task of a Slurm step in job {job}, got {error!r}; start the "
            "workers as srun hm3 train ..., or set TF_CONFIG"
        ) from error
    return {"cluster": cluster, "task": {"type": "worker", "index": index}}


def _check_tf_config() -> None:
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise Hm3Error(
            f"distribution.strategy=multi_worker: expected TF_CONFIG in the environment, found none; {_REMEDY}"
        )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise Hm3Error(f"TF_CONFIG: expected JSON, got {text[:80]!r} ({error}); {_REMEDY}") from error
    address = _own_address(config)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise Hm3Error(f"TF_CONFIG: expected addresses as host:port, got {address!r}; {_REMEDY}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise Hm3Error(
                f"TF_CONFIG: expected the free port {port} for this worker ({address}), but it cannot be opened: {error}; "
                "stop what uses it, or name another port on all workers"
            ) from error


def _own_address(config: Any) -> str:
    try:
        job, index = config["task"]["type"], int(config["task"]["index"])
        if job not in _JOBS or index < 0:
            raise ValueError(f"task {job} {index}")
        return str(config["cluster"][job][index])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Hm3Error(
            f"TF_CONFIG: expected this worker's task among the addresses of its cluster, got {config!r} ({error!r}); {_REMEDY}"
        ) from error


def input_context(strategy: tf.distribute.Strategy) -> tf.distribute.InputContext:
    """Returns which of how many workers this process is; worker 0 is the chief, which writes the run's files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return tf.distribute.InputContext(1, 0, strategy.num_replicas_in_sync)
    cluster = resolver.cluster_spec()
    tasks = [(job, i) for job in _JOBS if job in cluster.jobs for i in range(cluster.num_tasks(job))]
    this = tasks.index((resolver.task_type, resolver.task_id))
    return tf.distribute.InputContext(len(tasks), this, strategy.num_replicas_in_sync)


def gather(strategy: tf.distribute.Strategy, rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all workers, in the order of the workers, on each of them.

    Args:
      strategy: The strategy.
      rows: This worker's rows, [rows, ...]; workers may have different numbers.

    Returns:
      The rows of all, [sum of rows, ...].
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return rows
    values = rows.view(np.int64) if rows.dtype == np.uint64 else rows
    values = values.astype(np.int32) if values.dtype.itemsize == 1 else values  # collectives know few types
    gathered = strategy.gather(_of_first_replicas(strategy, values, values[:0]), axis=0).numpy()
    return gathered.view(rows.dtype) if rows.dtype == np.uint64 else gathered.astype(rows.dtype)


def add_up(strategy: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """Returns the sum of the workers' arrays, which have one shape, on each of them."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return array
    values = _of_first_replicas(strategy, array, np.zeros_like(array))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()


def _of_first_replicas(strategy: tf.distribute.Strategy, values: np.ndarray, other: np.ndarray) -> Any:
    """Returns a value a replica: `values` on the first one of each worker, `other` on the rest."""
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(values if _first_here(context, strategy) else other)
    )


def _first_here(context: tf.distribute.ReplicaContext, strategy: tf.distribute.Strategy) -> bool:
    return context.replica_id_in_sync_group % max(1, len(strategy.extended.worker_devices)) == 0
