"""Work on the machines of a Ray cluster, as tasks of Ray Data."""

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from data_pipeline.processes import Run
from hm3_tf.errors import Hm3Error
from hm3_tf.ray_session import connected


@contextlib.contextmanager
def ray_tasks(address: str | None = None) -> Iterator[Run]:
    """Yields what runs functions on a Ray cluster, a task an item; all machines see the same files under the same paths.

    Args:
      address: Of the cluster, see `connected`; None for a Ray of this machine.

    Yields:
      The `Run`.

    Raises:
      Hm3Error: Ray is not installed, or there is no cluster at the address.
    """
    with connected(address, os.cpu_count() or 1):
        yield run_tasks


def run_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any, None, None]:
    """Is a `Run` within a connection to Ray."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans, and that its bars are off
    pickled = [pickle.dumps(item) for item in items]
    if not pickled:
        return

    def task(row: dict[str, bytes]) -> dict[str, bytes]:
        try:
            result = function(pickle.loads(row["item"]))
        except Hm3Error as error:  # as a result: Ray would make its traceback the message
            result = error
        return {"result": pickle.dumps(result)}

    tasks = ray.data.from_items([{"item": item} for item in pickled], override_num_blocks=len(pickled)).map(task)
    tasks.context.enable_progress_bars = False
    tasks.context.execution_options.preserve_order = True
    for row in tasks.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, Hm3Error):
            raise result
        yield result
