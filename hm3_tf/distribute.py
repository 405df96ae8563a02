"""Replicas: the strategy of a run, and what its workers tell each other."""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from hm3_tf import parameter_server
from hm3_tf.cluster import await_workers, read_cluster, refuse_idle_cluster
from hm3_tf.config import DistributionConfig
from hm3_tf.errors import Hm3Error, LostWorkerError

STOP, SAVE = range(2)
_JOBS = ("chief", "worker")
_OF_SEVERAL_PROCESSES = ("multi_worker", "parameter_server")
_SHARED_FILE = "cluster"
_SHARED_S = 10.0  # within which a shared file system shows a new file


def make_strategy(config: DistributionConfig) -> tf.distribute.Strategy:
    """Returns the strategy of a run.

    Args:
      config: Its `strategy` is `one_device`, `mirrored` (all GPUs of this machine), `multi_worker` (of the cluster in
        TF_CONFIG, or else of the Slurm step) or, in the chief, `parameter_server` (of the cluster in TF_CONFIG).

    Returns:
      The strategy.

    Raises:
      Hm3Error: There is no usable cluster for a strategy of several processes, or its port is taken.
      LostWorkerError: A worker did not come.
    """
    if config.strategy == "multi_worker":
        await_workers(read_cluster(), config.start_seconds)
        return tf.distribute.MultiWorkerMirroredStrategy()
    if config.strategy == "parameter_server":
        return parameter_server.connect(config)
    refuse_idle_cluster(config.strategy)
    if config.strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0")


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


class Agreement:
    """What a worker asks (`STOP`, `SAVE`) is heard by all workers after the same step.

    Args:
      strategy: The run's strategy; without several workers a process hears what it asks itself.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._asked = np.zeros(2, np.float32)
        self._exchanged: tuple[tf.Variable, tf.Variable] | None = None  # what this worker asks, and what all of them do
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self._exchanged = tf.Variable(self._asked, trainable=False), tf.Variable(self._asked, trainable=False)

    def ask(self, what: int) -> None:
        """Asks for something after the step that comes."""
        if not self._asked[what]:
            self._asked[what] = 1
            self._pass_on()

    def exchange(self) -> None:
        """Adds up, within a step, what all replicas ask."""
        if self._exchanged:
            asked, heard = self._exchanged
            context = tf.distribute.get_replica_context()
            heard.assign(context.all_reduce(tf.distribute.ReduceOp.SUM, asked.read_value()))

    def heard(self) -> tuple[bool, ...]:
        """Whether any worker asked (`STOP`, `SAVE`) before the last step."""
        heard = self._exchanged[1].numpy() if self._exchanged else self._asked
        return tuple(heard > 0)

    def forget(self) -> None:
        """Takes back what this worker asked."""
        if self._asked.any():
            self._asked[:] = 0
            self._pass_on()

    def _pass_on(self) -> None:
        if self._exchanged:
            self._exchanged[0].assign(self._asked)


def check_shared(strategy: tf.distribute.Strategy, workdir: str) -> None:
    """Checks that all workers, or the servers and their chief, see one directory under a path.

    Args:
      strategy: The strategy.
      workdir: The path; made if need be.

    Raises:
      Hm3Error: One of them sees another one; raised on all workers.
    """
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        _check_shared_with_servers(workdir)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    this = input_context(strategy).input_pipeline_id
    path, token = storage.join(workdir, _SHARED_FILE), np.frombuffer(uuid.uuid4().bytes[:7] + b"\0", np.int64)
    if this == 0:
        storage.make_folder(workdir)
        storage.write_text(path, f"{token[0]}")
    chiefs = f"{gather(strategy, token)[0]}"
    start, seen = time.monotonic(), False
    while not seen and time.monotonic() - start < _SHARED_S:
        seen = tf.io.gfile.exists(path) and storage.read_text(path, "") == chiefs
        time.sleep(0 if seen else 0.2)
    others = [worker for worker, sees in enumerate(gather(strategy, np.array([seen]))) if not sees]
    if this == 0:
        tf.io.gfile.remove(path)
    if others:
        raise Hm3Error(
            f"{workdir}: expected a directory that all workers share, but workers {others} do not see what worker 0 wrote "
            "into it; use a shared file system, or a remote path"
        )


def _check_shared_with_servers(workdir: str) -> None:
    """Checks that the servers, which write their parts of each checkpoint, see the chief's directory.

    Raises:
      Hm3Error: One does not.
    """
    path, text = storage.join(workdir, _SHARED_FILE), uuid.uuid4().hex
    storage.make_folder(workdir)
    storage.write_text(path, text)
    start, others = time.monotonic(), parameter_server.servers_without(path, text)
    while others and time.monotonic() - start < _SHARED_S:
        time.sleep(0.2)
        others = parameter_server.servers_without(path, text)
    tf.io.gfile.remove(path)
    if others:
        raise Hm3Error(
            f"{workdir}: expected a directory that the chief and all servers share, but servers {others} do not see what the "
            "chief wrote into it; use a shared file system, or a remote path"
        )


def check_same(strategy: tf.distribute.Strategy, text: str, what: str) -> None:
    """Checks that something is the same on all workers.

    Args:
      strategy: The strategy.
      text: It, on this worker.
      what: What it is.

    Raises:
      Hm3Error: It is not; raised on all of them.
    """
    digest = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.int64)
    found = gather(strategy, digest)
    others = [worker for worker, each in enumerate(found) if each != found[0]]
    if others:
        raise Hm3Error(
            f"expected the same {what} on all workers, but that of workers {others} differs from that of worker 0; give all of "
            "them the same flags, files and folders"
        )


@contextlib.contextmanager
def explained_losses(strategy: str, workdir: str) -> Iterator[None]:
    """Turns the failure of an exchange with the other workers within the block into one line.

    Args:
      strategy: Name of the strategy.
      workdir: Where the run is.

    Raises:
      LostWorkerError: Another worker is gone.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
    ) as error:
        alone = strategy not in _OF_SEVERAL_PROCESSES
        if alone or (isinstance(error, tf.errors.InternalError) and "ollective" not in error.message):
            raise  # not of an exchange
        raise LostWorkerError(
            f"{workdir}: expected an answer of all workers, got {type(error).__name__}: {error.message.splitlines()[0]}; see "
            "which of them ended first and why; the same command on all workers goes on from the latest checkpoint"
        ) from error
