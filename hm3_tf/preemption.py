"""SIGTERM, which a scheduler sends before it takes a machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from hm3_tf.errors import PreemptionError


class Termination:
    """Whether this process was told to end.

    Attributes:
      asked: Whether it was.
    """

    def __init__(self) -> None:
        self.asked = False
        self._message = ""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes a SIGTERM within the block, in place of ending; a block outside the main thread cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def ends_at_once(self, message: str) -> Iterator[None]:
        """Ends the block when the process is told to end, or was before: nothing in it needs to be saved.

        Args:
          message: That of the error.

        Raises:
          PreemptionError: The process was told to end.
        """
        self._message = message
        try:
            if self.asked:
                raise PreemptionError(message)
            yield
        finally:
            self._message = ""

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._message:
            raise PreemptionError(self._message)
