"""The workers of a run on a Ray cluster: Ray Train places them, watches them and starts all again when one is lost.

What trains is a process of its own beside each of Ray's workers, as docs/adr/0037-ray.md explains.
"""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from data_pipeline import storage
from hm3_tf.cluster import read_cluster
from hm3_tf.errors import Hm3Error, LostWorkerError, PreemptionError
from hm3_tf.launch import (
    LOOK_S,
    OTHERS_END_S,
    SAVED_S,
    is_final,
    named_failures,
    raise_final,
    told_to_end,
    worker_arguments,
)
from hm3_tf.ray_session import connected

_LOGGER = logging.getLogger(__name__)
_PROGRAM = ("-m", "hm3_tf.launched")
_REPORTED_S = 5.0  # more, for the last of them to say how it ended


def launch_on_ray(
    arguments: Sequence[str], workers: int, max_restarts: int, workdir: str, address: str | None = None
) -> None:
    """Runs `hm3 train` in several processes of a Ray cluster until it has ended well.

    Each line of the workers is printed with the worker's number. A worker has one GPU if the cluster has any. When a worker
    is lost, all others are ended and all are started again: they go on from the latest checkpoint.

    Args:
      arguments: Of the command: `train --config=...`. It is run in a directory of this one's name on each machine.
      workers: Number of processes.
      max_restarts: Times that all are started again at most.
      workdir: Directory of the run, which all machines share; Ray keeps its own state of the run in `ray` in it.
      address: Of the cluster, see `connected`; None for a Ray of this machine.

    Raises:
      Hm3Error: A worker failed in a way that the next start would too; what it said stands above. Or Ray is not installed, or
        there is no cluster at the address.
      LostWorkerError: A worker was lost once more than they are started again.
      PreemptionError: A worker, or this process, was told to end (SIGTERM), and a checkpoint is written.
    """
    with connected(address, max(workers, os.cpu_count() or 1)) as ray, told_to_end() as told:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()
        job = _Job((*_PROGRAM, *worker_arguments(arguments, "multi_worker")), os.getcwd(), workers, desk)
        trainer = _trainer(ray, job, max_restarts, workdir)
        outcome: futures.Future[None] = futures.Future()
        # In a thread of its own, where Ray Train leaves Ctrl-C to this one.
        threading.Thread(target=_fit, args=(trainer, outcome), daemon=True).start()
        try:
            _print_until(outcome, ray, desk, told)
        except KeyboardInterrupt:
            desk.tell.remote(signal.SIGKILL)
            futures.wait([outcome], OTHERS_END_S)
            raise
        statuses, error = ray.get(desk.last.remote()), outcome.exception()
        if any(statuses.values()) or (error and told.is_set()):
            raise_final(statuses, told.is_set())
        if error:
            reason = str(error).strip().splitlines()[-1]
            raise LostWorkerError(
                f"hm3 launch: expected the workers to end well within {max_restarts} restarts, ended: "
                f"{named_failures(statuses) or reason}; see what they said above; the same command goes on from the latest "
                "checkpoint"
            ) from error


@dataclasses.dataclass(frozen=True)
class _Job:
    """What each worker of Ray is to do.

    Attributes:
      arguments: Of Python.
      folder: Directory to run it in.
      workers: Number of workers.
      desk: The actor.
    """

    arguments: tuple[str, ...]
    folder: str
    workers: int
    desk: Any


def _trainer(ray: Any, job: _Job, max_restarts: int, workdir: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < job.workers:
        _LOGGER.warning("the Ray cluster has %d %ss: waiting for %d, one a worker", there, kind, job.workers)
    return TensorflowTrainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=kind == "GPU",
            placement_strategy="PACK" if kind == "GPU" else "SPREAD",  # processors are shared by all on a machine
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage.absolute(workdir),
            failure_config=FailureConfig(max_failures=max_restarts),
        ),
    )


def _fit(trainer: Any, outcome: futures.Future[None]) -> None:
    try:
        trainer.fit()
        outcome.set_result(None)
    except BaseException as error:  # whatever it is, the launcher waits for it
        outcome.set_exception(error)


def _print_until(outcome: futures.Future[None], ray: Any, desk: Any, told: threading.Event) -> None:
    """Prints what the workers say until they have ended, and tells them when this process is told to end.

    Raises:
      PreemptionError: They did not end when told: they wait for a place in the cluster, or hang.
    """
    end, ended = math.inf, False
    while not ended:
        if told.is_set() and end == math.inf:
            end = time.monotonic() + SAVED_S + 2 * _REPORTED_S
            desk.tell.remote(signal.SIGTERM)
        if time.monotonic() > end:
            raise PreemptionError(
                "hm3 launch: told to end, before which not all workers ended; the same command goes on"
            )
        ended = bool(futures.wait([outcome], LOOK_S).done)
        sys.stdout.writelines(ray.get(desk.lines.remote()))
        sys.stdout.flush()


class Desk:
    """An actor, by which the launcher and its workers tell each other what they know. A start is named by its addresses."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._signal = 0
        self._statuses: dict[tuple[str, ...], dict[str, int]] = {}

    def begin(self, start: tuple[str, ...]) -> None:
        """Notes that a start has begun, and says of all but the first why."""
        if start not in self._statuses:
            if self._statuses:
                ended = named_failures(self.last()) or "a worker of Ray"
                self._lines.append(f"lost workers, ended: {ended} (start {len(self._statuses) + 1} begins)\n")
            self._statuses[start] = {}

    def say(self, line: str) -> None:
        """Takes a line for the launcher to print."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """Returns the lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def tell(self, number: int) -> None:
        """Has the processes that train sent a signal."""
        self._signal = number

    def end(self, start: tuple[str, ...], worker: str, status: int) -> None:
        """Notes with which status a worker's process ended; minus the number of the signal that ended it."""
        self._statuses[start][worker] = status

    def look(self, start: tuple[str, ...]) -> tuple[int, dict[str, int]]:
        """Returns the signal, 0 for none, and {worker: status} of those that have ended."""
        return self._signal, self._statuses[start]

    def last(self) -> dict[str, int]:
        """Returns {worker: status} of the last start."""
        return next(reversed(self._statuses.values()), {})


def _work(config: Mapping[str, _Job]) -> None:
    """Is what a worker of Ray does: has `hm3 train` run, and ends well unless all are to be started again.

    Raises:
      LostWorkerError: They are.
    """
    import ray

    job, cluster = config["job"], read_cluster()
    start, desk = cluster.addresses, job.desk

    def look() -> tuple[int, dict[str, int]]:
        return ray.get(desk.look.remote(start))

    desk.begin.remote(start)
    try:
        with _Process(job, cluster.index) as process:
            told, ended = look()
            while process.status is None and not told and not any(ended.values()):
                process.wait(LOOK_S)
                told, ended = look()
            if told:
                process.signal(told)
            saves = told or PreemptionError.status in (*ended.values(), process.status)
            patience = SAVED_S if saves else OTHERS_END_S
            process.wait(patience)
            unsaved = -signal.SIGKILL if saves else 0  # of one that is ended here
            status = unsaved if process.status is None else process.status
    except FileNotFoundError as error:
        message = f"{error.filename}: expected the directory of hm3 launch on every machine, found none"
        desk.say.remote(f"[worker {cluster.index}] hm3: error: {message}\n")
        status, patience, told = Hm3Error.status, OTHERS_END_S, 0
    ray.get(desk.end.remote(start, cluster.name, status))
    if not status:
        return
    end = time.monotonic() + patience + _REPORTED_S
    told, ended = look()
    while len(ended) < job.workers and time.monotonic() < end:
        time.sleep(LOOK_S)
        told, ended = look()
    if not is_final(ended, bool(told)):
        raise LostWorkerError(f"lost workers, ended: {named_failures(ended)}")


class _Process:
    """What trains beside a worker of Ray; nothing of it is left when the block ends, nor when Ray's worker does.

    Args:
      job: What to run.
      worker: The worker's number.
    """

    def __init__(self, job: _Job, worker: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *job.arguments],
            cwd=job.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,  # of which this process holds the other end, see hm3_tf.launched
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._printer = threading.Thread(target=self._pass_on, args=(job.desk, f"[worker {worker}] "))
        self._printer.start()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._printer.join()

    @property
    def status(self) -> int | None:
        """That it ended with; None of one that runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Waits until it has ended, or for some time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def signal(self, number: int) -> None:
        """Sends a signal to it and to what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _pass_on(self, desk: Any, prefix: str) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                desk.say.remote(prefix + line)
