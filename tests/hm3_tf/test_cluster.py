"""Workers wait for each other at their addresses; TF_CONFIG itself is read in test_cli.py."""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hm3_tf import cluster as clusters
from hm3_tf.cluster import Cluster, await_workers, free_addresses, read_cluster
from hm3_tf.errors import Hm3Error, LostWorkerError

PATIENCE_S = 60.0


@pytest.fixture
def served():
    """Returns a function that serves bytes to who comes to an address, as another program would."""
    with contextlib.ExitStack() as stack:

        def serve(address: str, answer: bytes, hangs_up: bool = False) -> None:
            host, port = address.split(":")
            server = stack.enter_context(socket.create_server((host, int(port))))

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        stack.enter_context(connection)
                        connection.sendall(answer)
                        if hangs_up:
                            connection.close()

            threading.Thread(target=accept, daemon=True).start()
            stack.callback(server.shutdown, socket.SHUT_RDWR)

        yield serve


def test_workers_go_on_when_the_last_has_come(served):
    addresses = free_addresses(2)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(await_workers, Cluster(addresses, 0), PATIENCE_S)
        with pytest.raises(TimeoutError):
            early.result(timeout=1.0)
        with clusters._listening(Cluster(addresses, 1)):
            assert early.result(timeout=PATIENCE_S) is None


def test_one_worker_alone_waits_for_none():
    await_workers(Cluster(free_addresses(1), 0), 0.0)


def test_a_worker_that_does_not_come_is_named(caplog, monkeypatch):
    monkeypatch.setattr(clusters, "_SAID_AFTER_S", 0.0)
    addresses = free_addresses(3)
    with caplog.at_level(logging.WARNING), pytest.raises(LostWorkerError) as error:
        await_workers(Cluster(addresses, 0), 1.0)
    missing = f"worker 1 ({addresses[1]}), worker 2 ({addresses[2]})"
    assert f"expected all 3 workers within 1 s, but {missing} did not answer" in str(error.value)
    assert caplog.messages == [f"worker 0 waits for {missing}"]


def test_a_worker_that_tensorflow_speaks_for_is_there(served):
    first, second = free_addresses(2)
    served(second, b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")  # the settings that HTTP/2 begins with
    await_workers(Cluster((first, second), 0), PATIENCE_S)


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_program_that_says_nothing_is_no_worker(served, hangs_up):
    first, second = free_addresses(2)
    served(second, b"", hangs_up)
    with pytest.raises(LostWorkerError, match=f"worker 1 .{second}. did not answer"):
        await_workers(Cluster((first, second), 0), 1.0)


def test_workers_of_other_clusters_are_refused():
    first, second, third = free_addresses(3)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(await_workers, Cluster((first, second, third), 1), 5.0)
        with pytest.raises(Hm3Error, match=f"that of worker 1 .{second}. differs from that of this one"):
            await_workers(Cluster((first, second), 0), PATIENCE_S)
        assert other.exception()


def test_a_port_in_use_is_refused(served):
    first, second = free_addresses(2)
    served(first, b"")
    with pytest.raises(Hm3Error, match=f"expected the free port {first.split(':')[1]} for this worker"):
        await_workers(Cluster((first, second), 0), PATIENCE_S)


def test_a_chief_is_the_first_worker(monkeypatch):
    jobs = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 1}}))
    assert read_cluster() == Cluster(("a:1", "b:2", "c:3"), 2)
    task = {"cluster": {"worker": ["a:1", "b:2", "c:3"]}, "task": {"type": "worker", "index": 2}}
    assert json.loads(os.environ["TF_CONFIG"]) == task  # what TensorFlow reads after it


def test_an_address_twice_is_refused(monkeypatch):
    config = {"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(Hm3Error, match=r"expected an address of its own for each worker, got \['a:1'\] twice"):
        read_cluster()


def test_the_environment_of_a_worker_is_read_as_that_worker(monkeypatch):
    cluster = Cluster(("a:1", "b:2"), 1)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    assert read_cluster() == cluster


NAMES = "chief", "worker 0", "worker 1", "server 0", "server 1"
OF_SERVERS = Cluster(("a:1", "b:2", "c:3", "d:4", "e:5"), 0, servers=2)


@pytest.mark.parametrize("index, name", list(enumerate(NAMES)))
def test_the_environment_of_each_process_with_servers_is_read_as_that_process(monkeypatch, index, name):
    process = dataclasses.replace(OF_SERVERS, index=index)
    monkeypatch.setenv("TF_CONFIG", process.environment["TF_CONFIG"])
    assert read_cluster("parameter_server") == process
    assert process.name == name


@pytest.mark.parametrize(
    "jobs, strategy, message",
    [
        (
            {"chief": ["a:1"], "ps": ["b:2"]},
            "parameter_server",
            "expected one chief, and at least one worker and one ps",
        ),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "parameter_server", "got {'chief': 1, 'worker': 1, 'ps': 0}"),
        ({"chief": ["a:1", "f:6"], "worker": ["b:2"], "ps": ["c:3"]}, "parameter_server", "expected one chief"),
        ({"chief": ["a:1"], "worker": ["b:2"], "ps": ["c:3"]}, "multi_worker", "expected no parameter servers"),
    ],
)
def test_a_cluster_without_the_jobs_of_the_strategy_is_refused(monkeypatch, jobs, strategy, message):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": "chief", "index": 0}}))
    with pytest.raises(Hm3Error, match=message):
        read_cluster(strategy)


def with_servers(index: int, addresses: tuple[str, ...]) -> Cluster:
    return Cluster(addresses, index, servers=1)


def test_a_worker_of_servers_waits_for_the_chief_alone(served):
    addresses = free_addresses(3)
    with pytest.raises(LostWorkerError, match=f"worker 0: expected .* but chief .{addresses[0]}. did not answer"):
        await_workers(with_servers(1, addresses), 1.0)
    with clusters._listening(with_servers(0, addresses)):
        await_workers(with_servers(1, addresses), PATIENCE_S)


def test_a_chief_of_servers_waits_until_tensorflow_speaks_for_the_others(served):
    addresses = free_addresses(3)
    served(addresses[1], b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")
    expected = pytest.raises(LostWorkerError, match=f"but server 0 .{addresses[2]}. did not answer")
    with clusters._listening(with_servers(2, addresses)), expected:
        await_workers(with_servers(0, addresses), 1.0)


def test_the_end_of_the_chief_is_when_nobody_answers_any_more(monkeypatch):
    monkeypatch.setattr(clusters, "_CHIEF_SILENT_S", 0.1)
    addresses = free_addresses(3)
    with ThreadPoolExecutor(1) as pool:
        with clusters._listening(with_servers(0, addresses)):
            waiting = pool.submit(clusters.await_end_of_chief, with_servers(1, addresses))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1.5)
        assert waiting.result(timeout=PATIENCE_S) is None
