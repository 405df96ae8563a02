"""A connection to Ray that cannot be had says why; tests of what runs on Ray have the others."""

import socket
import sys

import pytest

from hm3_tf.errors import Hm3Error
from hm3_tf.ray_session import connected


def connect(address):
    with connected(address, 1):
        pass


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Hm3Error, match=r"extra 'ray', but ray is not installed; pip install 'hm3-tf\[ray\]'"):
        connect("127.0.0.1:6379")


def test_an_address_where_nobody_listens_is_named_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Hm3Error, match=f"expected Ray at {address}, got: .*refused; see what ray status says"):
            connect(address)
