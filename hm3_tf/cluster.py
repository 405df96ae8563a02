"""The workers of a run, as TF_CONFIG or Slurm names them: the one place where those are read."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hm3_tf.errors import Hm3Error, LostWorkerError

_LOGGER = logging.getLogger(__name__)
_JOBS = (
    "chief",
    "worker",
    "ps",
)  # the first of all tasks is the chief; those of the last hold weights and train nothing
_REMEDY = (
    'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": n}}, the same cluster and '
    "another index on each worker; parameter_server needs the jobs chief, worker and ps"
)
_SAID_AFTER_S = 20.0  # without all workers, before it is said who is missing
_LOOK_S = 0.5
_CHIEF_SILENT_S = 10.0  # after which the chief has ended; it is silent for a moment when TensorFlow takes its port over
_GREETING = b"hm3 "  # before the digest of the cluster
_PORTS = range(10_000, 32_768)  # below those that Linux gives to connections by itself


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, and its parameter servers if it has some.

    Attributes:
      addresses: "host:port" of each worker; the first is the chief, which writes the run's files. Servers come last.
      index: Which of them this process is.
      servers: How many of them are servers. With servers the chief tells the other workers what to do.
    """

    addresses: tuple[str, ...]
    index: int
    servers: int = 0

    @property
    def address(self) -> str:
        """That of this process."""
        return self.addresses[self.index]

    @property
    def jobs(self) -> dict[str, tuple[str, ...]]:
        """The addresses by job, as TensorFlow names them."""
        if not self.servers:
            return {"worker": self.addresses}
        first_server = len(self.addresses) - self.servers
        parts = self.addresses[:1], self.addresses[1:first_server], self.addresses[first_server:]
        return dict(zip(_JOBS, parts))

    @property
    def task(self) -> tuple[str, int]:
        """The job of this process, and its index among those of the job."""
        tasks = [(job, index) for job, addresses in self.jobs.items() for index in range(len(addresses))]
        return tasks[self.index]

    @property
    def name(self) -> str:
        """What messages call this process: `worker 0`, or with servers `chief`, `worker 0`, `server 0`."""
        job, index = self.task
        return {"chief": "chief", "ps": f"server {index}"}.get(job, f"worker {index}")

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell a process that it is this one."""
        job, index = self.task
        return {"TF_CONFIG": json.dumps({"cluster": self.jobs, "task": {"type": job, "index": index}})}


def read_cluster(strategy: str = "multi_worker") -> Cluster:
    """Returns the cluster in TF_CONFIG, or that of the Slurm step, which is written into it: TensorFlow reads it too.

    Args:
      strategy: `multi_worker`, or `parameter_server`, whose cluster has one chief and some workers and servers.

    Raises:
      Hm3Error: There is neither, or it is no cluster of the strategy with this process in it.
    """
    if "SLURM_JOB_ID" in os.environ and not os.environ.get("TF_CONFIG"):
        os.environ.update(_slurm_cluster().environment)
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise Hm3Error(
            f"distribution.strategy={strategy}: expected TF_CONFIG in the environment, found none; {_REMEDY}"
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
    _check_jobs(config["cluster"], strategy)
    os.environ.update(cluster.environment)  # a chief is worker 0: all name the jobs alike, and greet alike
    return cluster


def _check_jobs(jobs: Mapping[str, Sequence[str]], strategy: str) -> None:
    """Checks that a cluster has the jobs that a strategy needs.

    Raises:
      Hm3Error: It does not.
    """
    counts = {job: len(jobs.get(job, ())) for job in _JOBS}
    if strategy == "multi_worker" and counts["ps"]:
        raise Hm3Error(
            f"distribution.strategy=multi_worker: expected no parameter servers (ps) in TF_CONFIG, got {counts}; set "
            "--config.distribution.strategy=parameter_server, or leave them out"
        )
    if strategy == "parameter_server" and not (counts["chief"] == 1 and counts["worker"] and counts["ps"]):
        raise Hm3Error(
            "distribution.strategy=parameter_server: expected one chief, and at least one worker and one ps in TF_CONFIG, "
            f"got {counts}; name them, or set --config.distribution.strategy=multi_worker"
        )


def _cluster(config: Any) -> Cluster:
    try:
        job, index = config["task"]["type"], int(config["task"]["index"])
        if job not in _JOBS or index < 0:
            raise ValueError(f"task {job} {index}")
        jobs = [name for name in _JOBS if name in config["cluster"]]
        addresses = tuple(str(address) for name in jobs for address in config["cluster"][name])
        own = str(config["cluster"][job][index])
        return Cluster(addresses, addresses.index(own), len(config["cluster"].get("ps", ())))
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
            "--config.distribution.strategy=multi_worker or parameter_server, or unset TF_CONFIG"
        )


def await_workers(cluster: Cluster, seconds: float) -> None:
    """Waits until each worker has answered at its address, as TensorFlow, which comes after, waits without a word.

    Each worker listens at its own address and says which cluster it is of, until it has reached all others. With servers only
    the chief does: the others wait for it alone, as it can do without a worker, and for one that is started again too.

    Args:
      cluster: The workers.
      seconds: Time to wait for the last of them.

    Raises:
      Hm3Error: This worker's port is taken, or another worker is of another cluster.
      LostWorkerError: A worker did not come.
    """
    start, said = time.monotonic(), False
    leads = not cluster.servers or cluster.index == 0
    missing = {address for address in cluster.addresses[: None if leads else 1] if address != cluster.address}
    with _listening(cluster) if leads else contextlib.nullcontext():
        while missing:
            missing = {address for address in missing if not _is_there(address, cluster)}
            waited = time.monotonic() - start
            if missing and waited > seconds:
                raise LostWorkerError(
                    f"{cluster.name}: expected all {len(cluster.addresses)} workers within {seconds:.0f} s, but "
                    f"{_named(missing, cluster)} did not answer; see whether it runs, listens there and can be reached"
                )
            if missing and waited > _SAID_AFTER_S and not said:
                _LOGGER.warning("%s waits for %s", cluster.name, _named(missing, cluster))
                said = True
            if missing:
                time.sleep(_LOOK_S)


def await_end_of_chief(cluster: Cluster) -> None:
    """Waits until nobody answers at the chief's address any more."""
    silent_since = None
    while silent_since is None or time.monotonic() - silent_since < _CHIEF_SILENT_S:
        time.sleep(_LOOK_S)
        if _is_there(cluster.addresses[0], cluster):
            silent_since = None
        elif silent_since is None:
            silent_since = time.monotonic()


def free_addresses(count: int) -> tuple[str, ...]:
    """Returns addresses of this machine that nothing listens at, "127.0.0.1:port"; other connections do not take such ports.

    Raises:
      Hm3Error: There are fewer.
    """
    found: list[str] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            found.append(f"127.0.0.1:{port}")
    if len(found) < count:
        raise Hm3Error(
            f"expected {count} free ports from {_PORTS.start} to {_PORTS.stop - 1} on this machine, found {len(found)}"
        )
    return tuple(found)


def _named(addresses: set[str], cluster: Cluster) -> str:
    tasks = [dataclasses.replace(cluster, index=index) for index in range(len(cluster.addresses))]
    return ", ".join(f"{task.name} ({task.address})" for task in tasks if task.address in addresses)


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

    A chief of servers waits for TensorFlow: it fails if it connects to one that is not ready.

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
    if not answer:  # a proxy, or another program
        return False
    return not answer.startswith(_GREETING) or not (cluster.servers and cluster.index == 0)
