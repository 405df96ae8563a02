"""Work on several processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa

from hm3_tf.errors import Hm3Error

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Yields a function's results for items, in their order, as `map` does; function, items and results can be pickled."""


@contextlib.contextmanager
def process_pool(processes: int) -> Iterator[Run]:
    """Yields what runs functions on processes, which end with the block, and with this process however it ends.

    Args:
      processes: How many.

    Yields:
      The `Run`; an error of the function ends it, and is raised. It raises `Hm3Error` where a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _start, (threads,)) as pool:

        def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            try:
                yield from pool.map(function, items)
            except BrokenProcessPool as error:
                raise Hm3Error(
                    f"expected {processes} processes to work to the end, but one was killed, perhaps for the memory it took; "
                    "the same command with fewer --processes goes on where it stopped"
                ) from error

        try:
            yield run
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(threads: int) -> None:
    """Prepares a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, but it is told to end
    threading.Thread(target=end_with_parent, daemon=True).start()
    pa.set_cpu_count(threads)


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however that was: another may do the same work."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
