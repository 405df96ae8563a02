"""SIGTERM is noted, or ends what needs no saving."""

import os
import signal
import threading

import pytest

from hm3_tf.errors import PreemptionError
from hm3_tf.preemption import Termination


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handler():
    """What handles SIGTERM outside of a block; it fails the test."""

    def refuse(*_):
        raise AssertionError("SIGTERM was not caught")

    before = signal.signal(signal.SIGTERM, refuse)
    yield refuse
    assert signal.signal(signal.SIGTERM, before) is refuse


def test_a_sigterm_is_noted_within_the_block_only(handler):
    termination = Termination()
    with termination.watched():
        assert not termination.asked
        send_sigterm()
        assert termination.asked
    with pytest.raises(AssertionError, match="not caught"):
        send_sigterm()


def test_a_block_that_needs_no_saving_ends_at_once():
    termination = Termination()
    with termination.watched():
        with pytest.raises(PreemptionError, match="^told to end$"), termination.ends_at_once("told to end"):
            send_sigterm()
        assert termination.asked
        with pytest.raises(PreemptionError, match="^told before$"), termination.ends_at_once("told before"):
            pass


def test_a_thread_leaves_the_signal_to_the_main_thread(handler):
    found = []

    def watch():
        with Termination().watched():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [handler]
