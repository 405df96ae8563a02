"""What replicas tell each other, in one process; tests/distributed has several."""

import pytest
import tensorflow as tf

from hm3_tf import distribute
from hm3_tf.distribute import SAVE, STOP, Agreement
from hm3_tf.errors import Hm3Error


def test_a_process_alone_hears_what_it_asks():
    agreement = Agreement(tf.distribute.get_strategy())
    assert agreement.heard() == (False, False)
    agreement.ask(SAVE)
    agreement.exchange()
    assert agreement.heard() == (False, True)
    agreement.forget()
    agreement.ask(STOP)
    assert agreement.heard() == (True, False)


def test_servers_that_do_not_share_the_workdir_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(distribute, "_SHARED_S", 0.0)
    monkeypatch.setattr(distribute.parameter_server, "servers_without", lambda path, text: [1])
    with pytest.raises(Hm3Error, match=r"servers \[1\] do not see what the chief wrote"):
        distribute._check_shared_with_servers(str(tmp_path))
    assert not list(tmp_path.iterdir())
