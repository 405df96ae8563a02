"""Work on several processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from hm3_tf.errors import Hm3Error

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Generator[Any, None, None]]
"""Yields a function's results for items, in their order; closed before the end it ends the work, or leaves it unfinished."""


def run_here(function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any, None, None]:
    """Is a `Run` in this process."""
    yield from map(function, items)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def process_pool(processes: int) -> Iterator[Run]:
    """Yields what runs functions on processes, which end with the block, and with this process however it ends.

    Args:
      processes: How many; they are started when there is work.

    Yields:
      The `Run` for functions, items and results that can be pickled. An error of the function ends all processes and is raised;
      where a process was killed it raises `Hm3Error`.
    """
    context = multiprocessing.get_context("spawn")
    lives, life = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _start, (max(1, cores() // processes), lives))

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any, None, None]:
        with _interrupts_ignored():  # by the processes that are started here, too: Ctrl-C would reach them as well
            waiting = [pool.submit(function, item) for item in items]
        try:
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise Hm3Error(
                f"expected {processes} processes to work to the end, but one was killed, perhaps for the memory it took; "
                "the same command with fewer --processes goes on where it stopped"
            ) from error
        finally:
            if not all(future.done() for future in waiting):
                end()

    def end() -> None:
        life.close()  # which ends the processes in the midst of their work
        pool.shutdown()

    try:
        yield run
    finally:
        end()
        lives.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(threads: int, lives: Connection) -> None:
    """Prepares a process of the pool, which ends when the other end of `lives` is closed."""
    threading.Thread(target=_end_with, args=(lives,), daemon=True).start()
    pa.set_cpu_count(threads)


def _end_with(lives: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lives.recv()
    os._exit(1)


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however that was: another may do the same work."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
