"""What replicas tell each other, in one process; tests/distributed has several."""

import tensorflow as tf

from hm3_tf.distribute import SAVE, STOP, Agreement


def test_a_process_alone_hears_what_it_asks():
    agreement = Agreement(tf.distribute.get_strategy())
    assert agreement.heard() == (False, False)
    agreement.ask(SAVE)
    agreement.exchange()
    assert agreement.heard() == (False, True)
    agreement.forget()
    agreement.ask(STOP)
    assert agreement.heard() == (True, False)
