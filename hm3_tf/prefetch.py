"""Work of one step done while the step before is used."""

import concurrent.futures
from collections.abc import Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items of an iterator, of which a thread makes one ahead.

    TensorFlow and numpy let go of the interpreter while they compute, so the two sides share the cores.

    Args:
      items: The iterator; what it raises is raised here.

    Yields:
      Its items, in order.
    """
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future: concurrent.futures.Future[Any] = thread.submit(next, items, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, items, end)
            yield item
