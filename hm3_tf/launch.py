"""The processes of a run on this machine, restarted together when one of them is lost, or alone where that is enough."""

import contextlib
import glob
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from hm3_tf.cluster import Cluster, free_addresses
from hm3_tf.errors import Hm3Error, LostWorkerError, PreemptionError, UsageError

_LOGGER = logging.getLogger(__name__)
_PROGRAM = (sys.executable, "-m", "hm3_tf.launched")
LOOK_S = 0.2
OTHERS_END_S = 10.0  # for the others to end by themselves when one has failed
SAVED_S = 300.0  # for all to write a checkpoint and end when told to
_FINAL = (Hm3Error.status, UsageError.status)  # what the next start would end with too


def launch(arguments: Sequence[str], workers: int, max_restarts: int, servers: int = 0) -> None:
    """Runs `hm3 train` in several processes of this machine until it has ended well.

    Each line of the workers is printed with the worker's number. GPUs are shared out equally. When a worker is lost, all
    others are ended and all are started again: they go on from the latest checkpoint. With servers there is a chief too, and a
    worker that is lost is started again alone, while the others go on.

    Args:
      arguments: Of the command: `train --config=...`.
      workers: Number of processes that train.
      max_restarts: Times that all, or one alone, are started again at most.
      servers: Number of processes that hold the tables (parameter servers), or 0 for none.

    Raises:
      UsageError: The GPUs of this machine cannot be shared out equally.
      Hm3Error: A worker failed in a way that the next start would too; what it said stands above.
      LostWorkerError: A worker was lost once more than they are started again.
      PreemptionError: A worker, or this process, was told to end (SIGTERM), and a checkpoint is written.
    """
    devices = _devices_of(workers)
    restarts = 0
    with told_to_end() as told:
        while restarts <= max_restarts:
            group = _Group(arguments, workers, servers, devices, max_restarts - restarts)
            with group:
                statuses = dict(zip(group.names, group.wait(told)))
            if not any(statuses.values()):
                return
            raise_final(statuses, told.is_set())
            failed = named_failures(statuses)
            restarts += group.restarts + 1
            _LOGGER.warning("lost workers, ended: %s (start %d of %d)", failed, restarts, max_restarts + 1)
    raise LostWorkerError(
        f"hm3 launch: expected the workers to end well within {max_restarts} restarts, ended: {failed}; see what they said "
        "above; the same command goes on from the latest checkpoint"
    )


def worker_arguments(arguments: Sequence[str], strategy: str) -> list[str]:
    """Returns the arguments of each process of a command `train --config=...`."""
    return [*arguments, f"--config.distribution.strategy={strategy}"]


def named_failures(statuses: Mapping[str, int]) -> str:
    """Returns which workers failed and how, in words.

    Args:
      statuses: {"worker 0": its status, or minus the number of the signal that ended it}.
    """
    return ", ".join(f"{name} with {_words(s)}" for name, s in sorted(statuses.items()) if s)


def _words(status: int) -> str:
    return f"status {status}" if status > 0 else signal.Signals(-status).name


def is_final(statuses: Mapping[str, int], told: bool) -> bool:
    """Whether workers that did not all end well are not to be started again.

    Args:
      statuses: {"worker 0": its status, or minus the number of the signal that ended it}.
      told: Whether the launcher was told to end.
    """
    found = statuses.values()
    killed = any(status < 0 for status in found)
    return told or PreemptionError.status in found or (not killed and any(status in _FINAL for status in found))


def raise_final(statuses: Mapping[str, int], told: bool) -> None:
    """Ends a launch whose workers did not all end well, if they are not to be started again; arguments as of `is_final`.

    Raises:
      Hm3Error: Workers failed in a way that the next start would too.
      PreemptionError: A worker, or the launcher, was told to end.
    """
    if not is_final(statuses, told):
        return
    failed = named_failures(statuses)
    if told or PreemptionError.status in statuses.values():
        raise PreemptionError(f"hm3 launch: told to end; ended: {failed}; the same command goes on")
    raise Hm3Error(f"hm3 launch: expected all workers to end well, ended: {failed}; what they said stands above")


@contextlib.contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM, or the end of the terminal, sets within the block."""
    told = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _devices_of(workers: int) -> list[str] | None:
    """Returns the CUDA_VISIBLE_DEVICES of each worker: an equal share of this machine's GPUs, None where it has none.

    Raises:
      UsageError: The GPUs cannot be shared out equally.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]  # CUDA counts those that it sees
    devices = found if named is None else [name for name in named.split(",") if name not in ("", "-1")]
    if not devices:
        return None
    if len(devices) % workers:
        raise UsageError(
            f"--workers: expected a divisor of the {len(devices)} GPUs of this machine, got {workers}; set it, or name the "
            "GPUs in CUDA_VISIBLE_DEVICES"
        )
    share = len(devices) // workers
    return [",".join(devices[i * share : (i + 1) * share]) for i in range(workers)]


class _Group:
    """The processes of one start; none of them is left when the block ends, however it does.

    Args:
      arguments: Of the command.
      workers: Number of processes that train.
      servers: Number of parameter servers.
      devices: The CUDA_VISIBLE_DEVICES of each worker, or None.
      max_restarts: Times that workers are started again alone at most; only those of servers can be.

    Attributes:
      names: What messages call each process.
      restarts: Times that workers were started again alone.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        servers: int,
        devices: Sequence[str] | None,
        max_restarts: int,
    ) -> None:
        self._command = [*_PROGRAM, *worker_arguments(arguments, "parameter_server" if servers else "multi_worker")]
        addresses = free_addresses(workers + servers + bool(servers))
        self._tasks = [Cluster(addresses, index, servers) for index in range(len(addresses))]
        self._devices, self._max_restarts, self.restarts = devices, max_restarts, 0
        self.names = [task.name for task in self._tasks]
        self._processes: list[subprocess.Popen[str]] = []
        self._printers: list[threading.Thread] = []

    def __enter__(self) -> "_Group":
        try:
            for task in self._tasks:
                self._processes.append(self._start(task))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, task: Cluster) -> subprocess.Popen[str]:
        own = {**task.environment, "PYTHONUNBUFFERED": "1"}
        if self._devices:
            job, index = task.task
            own["CUDA_VISIBLE_DEVICES"] = self._devices[index] if job == "worker" else "-1"
        process = subprocess.Popen(
            self._command,
            env={**os.environ, **own},
            stdin=subprocess.PIPE,  # whose end tells the process that this one is gone, however that ended
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends them in order
        )
        self._printers.append(threading.Thread(target=_print_lines, args=(process, f"[{task.name}] ")))
        self._printers[-1].start()
        return process

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        for process in self._processes:
            _reap(process)
        for printer in self._printers:
            printer.join()

    def wait(self, told: threading.Event) -> list[int]:
        """Waits until all have ended, or the chief of servers has, and ends those that go on after one has failed.

        Args:
          told: Set when all are to write a checkpoint and end.

        Returns:
          The status of each, minus the number of the signal that ended it; 0 for one that goes on though another has failed.
        """
        while self._running() and not self._failed() and not told.wait(LOOK_S):
            self._restart_workers()
        if told.is_set():
            self._signal(signal.SIGTERM)
        saves = told.is_set() or PreemptionError.status in self._statuses()
        self._wait_for(SAVED_S if saves else OTHERS_END_S)
        unsaved = -signal.SIGKILL if saves and self._running() else 0
        return [unsaved if status is None else status for status in self._statuses()]

    def _statuses(self) -> list[int | None]:
        return [process.poll() for process in self._processes]

    def _running(self) -> bool:
        statuses = self._statuses()
        return statuses[0] is None if self._tasks[0].servers else None in statuses

    def _failed(self) -> bool:
        return any(status for i, status in enumerate(self._statuses()) if not self._can_restart(i))

    def _can_restart(self, i: int) -> bool:
        """Whether a process, if it is lost, is started again while the others go on."""
        alone = self._tasks[i].servers and self._tasks[i].task[0] == "worker"
        return bool(alone) and self.restarts < self._max_restarts and self._processes[i].poll() not in _FINAL

    def _restart_workers(self) -> None:
        for i, status in enumerate(self._statuses()):
            if status and self._can_restart(i):
                self.restarts += 1
                _LOGGER.warning(
                    "lost %s, ended with %s (restart %d of %d)",
                    *(self.names[i], _words(status), self.restarts, self._max_restarts),
                )
                self._signal(signal.SIGKILL, self._processes[i])  # what it started
                _reap(self._processes[i])
                self._processes[i] = self._start(self._tasks[i])

    def _wait_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._running() and time.monotonic() < end:
            time.sleep(LOOK_S)

    def _signal(self, number: int, *processes: subprocess.Popen[str]) -> None:
        """Signals processes, all by default, and what they started."""
        for process in processes or self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _reap(process: subprocess.Popen[str]) -> None:
    process.wait()
    if process.stdin:
        process.stdin.close()


def _print_lines(process: subprocess.Popen[str], prefix: str) -> None:
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            sys.stdout.write(prefix + line)
            sys.stdout.flush()
