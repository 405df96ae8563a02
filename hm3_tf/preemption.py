"""SIGTERM, which a scheduler sends before it takes a machine away, and what workers agree on because of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import numpy as np
import tensorflow as tf

from hm3_tf.errors import PreemptionError

STOP, SAVE = range(2)


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
