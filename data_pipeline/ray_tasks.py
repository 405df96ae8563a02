"""Tasks on a Ray cluster, numbered and with results in their order."""

import logging
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from hm3_tf.errors import Hm3Error


def run_tasks(ray: Any, task: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yields the results of a task for 0, 1, ... `count` - 1, in this order.

    Raises:
      Hm3Error: One of them did.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans, and that its bars are off

    def run(row: dict[str, int]) -> dict[str, bytes]:
        try:
            result = task(row["item"])
        except Hm3Error as error:  # as a result: Ray would make its traceback the message
            result = error
        return {
            "result": zlib.compress(pickle.dumps(result), level=1)
        }  # most of it are sketches, which are mostly empty

    tasks = ray.data.from_items(list(range(count)), override_num_blocks=count).map(run)
    tasks.context.enable_progress_bars = False
    tasks.context.execution_options.preserve_order = True
    for row in tasks.iter_rows():
        result = pickle.loads(zlib.decompress(row["result"]))
        if isinstance(result, Hm3Error):
            raise result
        yield result
