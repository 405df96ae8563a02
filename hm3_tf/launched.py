"""`python -m hm3_tf.launched VERB` is `hm3 VERB` in a process that ends when the other end of its standard input does."""

import os
import signal
import threading

from hm3_tf.cli import main


def _end_with_starter() -> None:
    os.read(0, 1)  # nobody writes: it returns when who started this process is gone, however that ended
    if os.getpgrp() == os.getpid():  # with what this process started
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    main()
