"""The workers of a run, as TF_CONFIG or Slurm names them: the one place where those are read."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from hm3_tf.errors import Hm3Error, LostWorkerError

_LOGGER = logging.getLogger(__name__)
_JOBS = ("chief", "worker")  # that train; the first of them is the chief
_REMEDY = (
    'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": n}}, the same cluster and '
    "another index on each worker"
)
_SAID_AFTER_S = 20.0  # without all workers, before it is said who is missing
_LOOK_S = 0.5
_GREETING = b"hm3 "  # before the digest of the cluster


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      addresses: "host:port" of each worker; the first is the chief, which writes the run's files.
      index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def address(self) -> str:
        """That of this process."""
        return self.addresses[self.index]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell a process that it is this one."""
        task = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": self.index}}
        return {"TF_CONFIG": json.dumps(task)}


def read_cluster() -> Cluster:
    """Returns the cluster in TF_CONFIG, or that of the Slurm step, which is written into it: TensorFlow reads it too.

    Raises:
      Hm3Error: There is neither, or it is no cluster with this process in it.
    """
    if "SLURM_JOB_ID" in os.environ and not os.environ.get("TF_CONFIG"):
        os.environ.update(_slurm_cluster().environment)
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise Hm3Error(
            f"distribution.strategy=multi_worker: expected TF_CONFIG in the environment, found none; {_REMEDY}"
        )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise Hm3Error(f"TF_CONFIG: expected JSON, got {text[:80]!r} ({error}); {_REMEDY}") from error
    cluster = _cluster(config)
    twice = {address for address in cluster.addresses if cluster.addresses.count(address) > 1}
    if twice:
        raise Hm3Error(
            f"TF_CONFIG: expected an address of its own for each worker, got {sorted(twice)} twice; {_REMEDY}"
        )
    for address in cluster.addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise Hm3Error(f"TF_CONFIG: expected addresses as host:port, got {address!r}; {_REMEDY}")
    return cluster


def _cluster(config: Any) -> Cluster:
    try:
        job, index = config["task"]["type"], int(config["task"]["index"])
        if job not in _JOBS or index < 0:
            raise ValueError(f"task {job} {index}")
        jobs = [name for name in _JOBS if name in config["cluster"]]
        addresses = tuple(str(address) for name in jobs for address in config["cluster"][name])
        own = str(config["cluster"][job][index])
        return Cluster(addresses, addresses.index(own))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Hm3Error(
            f"TF_CONFIG: expected this worker's task among the addresses of its cluster, got {config!r} ({error!r}); {_REMEDY}"
        ) from error


def _slurm_cluster() -> Cluster:
    """Returns the cluster that the variables of this task's Slurm step stand for.

    Jobs that share a node have ports of their own, 16 each, below those that Linux hands out. Slurm binds the GPUs: the
    resolver would count them by nvidia-smi, fails where there are none, and is told one a task instead.

    Raises:
      Hm3Error: This process was not started by srun.
    """
    import tensorflow as tf  # the launcher needs no TensorFlow

    job = int(os.environ["SLURM_JOB_ID"])
    port = 10_000 + job % 1_000 * 16
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port, gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]), gpus_per_task=1, auto_set_gpu=False
        )
        addresses = tuple(resolver.cluster_spec().as_dict()["worker"])
        own = f"{os.environ['SLURMD_NODENAME']}:{port + int(os.environ['SLURM_LOCALID'])}"
        # Not the resolver's own index: it sorts the nodes as text, n10 before n9, and takes the tasks to be in that order.
        return Cluster(addresses, addresses.index(own))
    except (KeyError, ValueError, RuntimeError) as error:
        raise Hm3Error(
            f"distribution.strategy=multi_worker: expected a task of a Slurm step in job {job}, got {error!r}; start the "
            "workers as srun hm3 train ..., or set TF_CONFIG"
        ) from error


def refuse_idle_cluster(strategy: str) -> None:
    """Refuses a strategy of one machine where TF_CONFIG names several: each would train the whole log by itself.

    Raises:
      Hm3Error: It does.
    """
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")["cluster"]
        tasks = sum(len(cluster.get(job, ())) for job in _JOBS)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return
    if tasks > 1:
        raise Hm3Error(
            f"distribution.strategy={strategy}: expected no cluster, but TF_CONFIG names one of {tasks} tasks; set "
            "--config.distribution.strategy=multi_worker, or unset TF_CONFIG"
        )


def await_workers(cluster: Cluster, seconds: float) -> None:
    """Waits until each worker has answered at its address, as TensorFlow, which comes after, waits without a word.

    Each worker listens at its own address and says which cluster it is of, until it has reached all others.

    Args:
      cluster: The workers.
      seconds: Time to wait for the last of them.

    Raises:
      Hm3Error: This worker's port is taken, or another worker is of another cluster.
      LostWorkerError: A worker did not come.
    """
    start, said = time.monotonic(), False
    missing = {address for address in cluster.addresses if address != cluster.address}
    with _listening(cluster):
        while missing:
            missing = {address for address in missing if not _is_there(address, cluster)}
            waited = time.monotonic() - start
            if missing and waited > seconds:
                raise LostWorkerError(
                    f"worker {cluster.index}: expected all {len(cluster.addresses)} workers within {seconds:.0f} s, but "
                    f"{_named(missing, cluster)} did not answer; see whether it runs, listens there and can be reached"
                )
            if missing and waited > _SAID_AFTER_S and not said:
                _LOGGER.warning("worker %d waits for %s", cluster.index, _named(missing, cluster))
                said = True
            if missing:
                time.sleep(_LOOK_S)


def _named(addresses: set[str], cluster: Cluster) -> str:
    return ", ".join(f"worker {i} ({a})" for i, a in enumerate(cluster.addresses) if a in addresses)


def _greeting(cluster: Cluster) -> bytes:
    return _GREETING + hashlib.sha256(json.dumps(cluster.addresses).encode()).digest()


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[None]:
    """Greets who comes to this worker's address within the block.

    Raises:
      Hm3Error: The port cannot be opened.
    """
    port = int(cluster.address.rpartition(":")[2])
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
            server.listen(len(cluster.addresses))
        except OSError as error:
            raise Hm3Error(
                f"TF_CONFIG: expected the free port {port} for this worker ({cluster.address}), but it cannot be opened: "
                f"{error}; stop what uses it, or name another port on all workers"
            ) from error
        server.settimeout(_LOOK_S)
        ended = threading.Event()
        greeter = threading.Thread(target=_greet, args=(server, _greeting(cluster), ended), daemon=True)
        greeter.start()
        try:
            yield
        finally:
            ended.set()
            greeter.join()


def _greet(server: socket.socket, greeting: bytes, ended: threading.Event) -> None:
    while not ended.is_set():
        with contextlib.suppress(OSError):  # none came in a while, or who came is gone
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                connection.settimeout(_LOOK_S)
                connection.recv(1)  # until the other end closes, so that the port is free at once


def _is_there(address: str, cluster: Cluster) -> bool:
    """Whether a worker answers: with a greeting, or as TensorFlow, once it has itself reached all others.

    Raises:
      Hm3Error: It is of another cluster.
    """
    host, _, port = address.rpartition(":")
    expected = _greeting(cluster)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S) as connection:
            answer = connection.recv(len(_GREETING))
            if answer == _GREETING:
                answer += connection.makefile("rb").read(len(expected) - len(answer))
    except OSError:  # not there yet, or says nothing
        return False
    if answer.startswith(_GREETING) and answer != expected:
        raise Hm3Error(
            f"TF_CONFIG: expected the same cluster on all workers, but that of {_named({address}, cluster)} differs from "
            f"that of this one, {list(cluster.addresses)}; {_REMEDY}"
        )
    return True
