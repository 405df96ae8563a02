"""The workers of a run as processes of this machine, restarted together when one of them is lost."""

import contextlib
import glob
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from hm3_tf.cluster import Cluster
from hm3_tf.errors import Hm3Error, LostWorkerError, PreemptionError, UsageError

_LOGGER = logging.getLogger(__name__)
_PROGRAM = (sys.executable, "-m", "hm3_tf")
_HOST = "127.0.0.1"
_LOOK_S = 0.2
_OTHERS_END_S = 10.0  # for the others to end by themselves when one has failed
_SAVED_S = 60.0  # for all to write a checkpoint and end when told to
_FINAL = (Hm3Error.status, UsageError.status)  # what the next start would end with too


def launch(arguments: Sequence[str], workers: int, max_restarts: int) -> None:
    """Runs `hm3 train` in several processes of this machine until it has ended well.

    Each line of the workers is printed with the worker's number. GPUs are shared out equally. When a worker is lost, all
    others are ended and all are started again: they go on from the latest checkpoint.

    Args:
      arguments: Of the command: `train --config=...`.
      workers: Number of processes.
      max_restarts: Times that all are started again at most.

    Raises:
      UsageError: The GPUs of this machine cannot be shared out equally.
      Hm3Error: A worker failed in a way that the next start would too; what it said stands above.
      LostWorkerError: A worker was lost once more than they are started again.
      PreemptionError: A worker, or this process, was told to end (SIGTERM), and a checkpoint is written.
    """
    devices = _devices_of(workers)
    with _told_to_end() as told:
        for start in range(max_restarts + 1):
            group = _Group(arguments, workers, devices)
            with group:
                statuses = group.wait(told)
            if not any(statuses):
                return
            failed = ", ".join(f"worker {i} with {_words(s)}" for i, s in enumerate(statuses) if s)
            if PreemptionError.status in statuses or told.is_set():
                raise PreemptionError(f"hm3 launch: told to end; ended: {failed}; the same command goes on")
            if set(statuses) <= {0, *_FINAL}:
                raise Hm3Error(
                    f"hm3 launch: expected all workers to end well, ended: {failed}; what they said stands above"
                )
            _LOGGER.warning("lost workers, ended: %s (start %d of %d)", failed, start + 1, max_restarts + 1)
    raise LostWorkerError(
        f"hm3 launch: expected the workers to end well within {max_restarts} restarts, ended: {failed}; see what they said "
        "above; the same command goes on from the latest checkpoint"
    )


def _words(status: int) -> str:
    return f"status {status}" if status > 0 else signal.Signals(-status).name


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets within the block."""
    told = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _devices_of(workers: int) -> list[str] | None:
    """Returns the CUDA_VISIBLE_DEVICES of each worker: an equal share of this machine's GPUs, None where it has none.

    Raises:
      UsageError: The GPUs cannot be shared out equally.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [path.removeprefix("/dev/nvidia") for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]
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


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_HOST, 0))
        return [one.getsockname()[1] for one in sockets]


class _Group:
    """The workers of one start; none of them is left when the block ends, however it does.

    Args:
      arguments: Of the command.
      workers: Number of processes.
      devices: The CUDA_VISIBLE_DEVICES of each, or None.
    """

    def __init__(self, arguments: Sequence[str], workers: int, devices: Sequence[str] | None) -> None:
        addresses = tuple(f"{_HOST}:{port}" for port in _free_ports(workers))
        self._environments = []
        for index in range(workers):
            own = {**Cluster(addresses, index).environment, "PYTHONUNBUFFERED": "1"}
            if devices:
                own["CUDA_VISIBLE_DEVICES"] = devices[index]
            self._environments.append({**os.environ, **own})
        self._command = [*_PROGRAM, *arguments, "--config.distribution.strategy=multi_worker"]
        self._processes: list[subprocess.Popen[str]] = []
        self._printers: list[threading.Thread] = []

    def __enter__(self) -> "_Group":
        for index, environment in enumerate(self._environments):
            process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C comes to this process alone, which ends them in order
            )
            self._processes.append(process)
            self._printers.append(threading.Thread(target=_print_lines, args=(process, f"[worker {index}] ")))
            self._printers[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        for process, printer in zip(self._processes, self._printers):
            process.wait()
            printer.join()

    def wait(self, told: threading.Event) -> list[int]:
        """Waits until all have ended, and ends those that go on after one has failed.

        Args:
          told: Set when all are to write a checkpoint and end.

        Returns:
          The status of each that ended by itself, minus the number of the signal that ended it; 0 for one that was ended here.
        """
        while self._running() and not self._failed() and not told.wait(_LOOK_S):
            pass
        if told.is_set():
            self._signal(signal.SIGTERM)
        self._wait_for(_SAVED_S if told.is_set() or PreemptionError.status in self._statuses() else _OTHERS_END_S)
        return [status or 0 for status in self._statuses()]

    def _statuses(self) -> list[int | None]:
        return [process.poll() for process in self._processes]

    def _running(self) -> bool:
        return None in self._statuses()

    def _failed(self) -> bool:
        return any(self._statuses())

    def _wait_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._running() and time.monotonic() < end:
            time.sleep(_LOOK_S)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # what a worker started too


def _print_lines(process: subprocess.Popen[str], prefix: str) -> None:
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            sys.stdout.write(prefix + line)
            sys.stdout.flush()
