import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from coordinator import broker as broker_module
from coordinator.broker import (
    HOST,
    BrokerMissingError,
    BrokerStartError,
    EmbeddedBroker,
    Kind,
    available_kinds,
    iotcore_config,
    mosquitto_config,
)
from tests.support.federated import TunedBroker
from wire import BrokerAddress, MqttLink, limits
from wire.link import publish_packet_bytes

WAIT_S = 10.0
GONE_S = 5.0
TOPIC = "potluck/1/demo/0123456789abcdef/up"
ROOT = Path(__file__).parents[2]

# A program that starts a broker, says where, and waits to be killed.
PARENT = """
import os, sys, threading
from coordinator.broker import EmbeddedBroker
broker = EmbeddedBroker(kind=sys.argv[1])
broker.start()
worker = os.fork() if sys.argv[2] == "fork" else -1
if worker != 0:
    print(broker.port, worker, flush=True)
threading.Event().wait()
"""

kinds = pytest.mark.parametrize("kind", available_kinds())


@contextmanager
def link_to(broker: EmbeddedBroker) -> Iterator[tuple[MqttLink, "queue.Queue[bytes]"]]:
    """A link that is up and subscribed to `TOPIC`, and what it receives."""
    up: queue.Queue[int] = queue.Queue()
    received: queue.Queue[bytes] = queue.Queue()
    link = MqttLink(
        BrokerAddress.parse(broker.url),
        "test-link",
        subscriptions=(TOPIC,),
        on_message=lambda _topic, payload: received.put(payload),
        on_up=up.put,
        on_down=lambda _why: None,
    )
    link.start()
    try:
        up.get(timeout=WAIT_S)
        yield link, received
    finally:
        link.stop()


def is_open(port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextmanager
def gone_afterwards(port: int) -> Iterator[None]:
    """The broker on this port ends within 5 s of the block's end: an open connection tells."""
    with socket.create_connection((HOST, port), timeout=GONE_S) as connection:
        yield
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    deadline = time.monotonic() + GONE_S
    while is_open(port):  # connections may close a moment before the listener
        assert time.monotonic() < deadline


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which a stranger listens, who speaks no MQTT."""
    with closing(socket.create_server((HOST, 0))) as server:
        yield server.getsockname()[1]


def test_iotcore_always_serves() -> None:
    """The extra `coordinator` brings a broker, whatever the machine has."""
    assert "iotcore" in available_kinds()


def test_without_any_broker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Mosquitto and no iotcore: one line that names both, and a way around."""
    monkeypatch.setattr(broker_module, "available_kinds", tuple)
    with pytest.raises(BrokerMissingError, match=r"install mosquitto, or iotcore") as caught:
        EmbeddedBroker()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(BrokerMissingError, match="mosquitto is not installed"):
        EmbeddedBroker(kind="mosquitto")


def test_mosquitto_is_found_outside_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Debian's /usr/sbin is not on a user's PATH; the program is found there all the same."""
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(broker_module, "_SBIN", (str(tmp_path),))
    assert str(program) == broker_module.mosquitto_path()


def test_a_persistent_mosquitto_saves_every_change(tmp_path: Path) -> None:
    """With a directory to keep things in, what was acknowledged is on disk within a second."""
    kept = mosquitto_config(1883, 131_072, tmp_path).splitlines()
    assert "autosave_on_changes true" in kept
    assert "autosave_interval 1" in kept
    assert f"persistence_location {tmp_path}/" in kept
    assert "persistence false" in mosquitto_config(1883, 131_072, None).splitlines()


@pytest.mark.parametrize("config", [mosquitto_config(1883, 4096, None), iotcore_config(1883, 4096)])
def test_no_configuration_listens_to_the_network(config: str) -> None:
    """Every listener is on 127.0.0.1."""
    listeners = [line for line in config.splitlines() if line.startswith("listen")]
    assert len(listeners) == 1
    assert HOST in listeners[0]


def test_before_a_start_it_has_no_address_and_no_process() -> None:
    """What is not known yet is an error with a sentence, not None in a URL."""
    broker = EmbeddedBroker(kind="iotcore")
    assert not broker.running
    with pytest.raises(BrokerStartError, match="before its first start"):
        _ = broker.url
    with pytest.raises(BrokerStartError, match="not running"):
        _ = broker.pid
    broker.stop()


@pytest.mark.live
@kinds
def test_it_listens_on_loopback_only(kind: Kind) -> None:
    """The broker's process has one listening socket, on 127.0.0.1 and the port of its URL."""
    with EmbeddedBroker(kind=kind) as broker:
        assert kind == broker.kind
        assert f"mqtt://127.0.0.1:{broker.port}" == broker.url
        listening = [
            connection.laddr
            for connection in psutil.Process(broker.pid).net_connections(kind="all")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert [(HOST, broker.port)] == [tuple(address) for address in listening]


@pytest.mark.live
@kinds
def test_the_largest_packet_makes_the_round_trip(kind: Kind) -> None:
    """A QoS 1 packet of exactly our limit goes through the broker and back, unchanged."""
    overhead = publish_packet_bytes(TOPIC, limits.PACKET_BYTES_MAX_DEFAULT, mqtt5=True)
    payload = os.urandom(2 * limits.PACKET_BYTES_MAX_DEFAULT - overhead)
    assert publish_packet_bytes(TOPIC, len(payload), mqtt5=True) == limits.PACKET_BYTES_MAX_DEFAULT
    with EmbeddedBroker(kind=kind) as broker, link_to(broker) as (link, received):
        link.publish(TOPIC, payload)
        assert payload == received.get(timeout=WAIT_S)


@pytest.mark.live
@kinds
def test_stop_leaves_no_process_no_port_and_no_file(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After `stop()` nothing is left of a broker that was given no directory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broker = EmbeddedBroker(kind=kind)
    with broker:
        pid, port = broker.pid, broker.port
        assert any(tmp_path.iterdir())
    assert not broker.running
    assert not psutil.pid_exists(pid)
    assert not is_open(port)
    assert list(tmp_path.iterdir()) == []
    broker.stop()


@pytest.mark.live
@kinds
@pytest.mark.parametrize("worker", ["alone", "fork"])
def test_it_ends_with_a_parent_that_is_killed(kind: Kind, worker: str) -> None:
    """After kill -9 of the parent the port is free within 5 s, even if a forked worker lives on."""
    command = [sys.executable, "-c", PARENT, kind, worker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        port, forked = (int(word) for word in parent.stdout.readline().split())
        with gone_afterwards(port):
            parent.kill()
        if worker == "fork":
            os.kill(forked, signal.SIGKILL)


@pytest.mark.live
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@kinds
def test_it_ends_with_a_guard_that_is_killed(kind: Kind) -> None:
    """The process in between, killed with -9, leaves no broker either."""
    with EmbeddedBroker(kind=kind) as broker:
        guard = psutil.Process(broker.pid).parent()
        assert guard is not None
        with gone_afterwards(broker.port):
            guard.kill()


@pytest.mark.live
@kinds
def test_after_a_kill_it_comes_back_on_the_same_port(kind: Kind) -> None:
    """A killed broker restarts under the URL that everybody has, with connections in TIME_WAIT."""
    with EmbeddedBroker(kind=kind) as broker:
        url, pid = broker.url, broker.pid
        with link_to(broker):
            broker.kill()
        assert not broker.running
        broker.start()
        assert url == broker.url
        assert pid != broker.pid
        with link_to(broker) as (link, received):
            link.publish(TOPIC, b"again")
            assert received.get(timeout=WAIT_S) == b"again"


@pytest.mark.live
@kinds
def test_a_broker_killed_from_outside_is_seen_and_started_again(kind: Kind) -> None:
    """`running` tells of a death that nobody announced, and `start()` mends it."""
    with EmbeddedBroker(kind=kind) as broker:
        port = broker.port
        with gone_afterwards(port):
            os.kill(broker.pid, signal.SIGKILL)
        assert not broker.running
        broker.start()
        assert port == broker.port
        assert is_open(port)


@pytest.mark.live
def test_a_persistent_broker_keeps_its_files(tmp_path: Path) -> None:
    """Configuration, log and database stay in the directories that were given, over a restart."""
    state, kept = tmp_path / "state of things", tmp_path / "kept"
    with EmbeddedBroker(kind="mosquitto", state_dir=state, persistence_dir=kept) as broker:
        broker.kill()
        broker.start()
    assert {"mosquitto.conf", "broker.log"} == {path.name for path in state.iterdir()}
    assert [path.name for path in kept.iterdir()] == ["mosquitto.db"]


@pytest.mark.live
@kinds
def test_a_taken_port_is_an_error_that_names_it(kind: Kind, taken_port: int) -> None:
    """A fixed port that somebody has: one line that says which, and nothing left running."""
    broker = EmbeddedBroker(kind=kind, port=taken_port)
    with pytest.raises(BrokerStartError, match=f"port {taken_port} on 127.0.0.1 is taken"):
        broker.start()
    assert not broker.running


@pytest.mark.live
@kinds
def test_a_port_lost_in_a_race_is_tried_again(
    kind: Kind, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the free port before the broker does: it takes another."""
    free_port, looked_free = broker_module.free_port, broker_module._port_is_free
    offered = iter([taken_port])
    monkeypatch.setattr(broker_module, "free_port", lambda: next(offered, None) or free_port())
    looks = iter([True])  # at the first look the port was free still
    monkeypatch.setattr(
        broker_module, "_port_is_free", lambda port: next(looks, None) or looked_free(port)
    )
    with EmbeddedBroker(kind=kind) as broker:
        assert taken_port != broker.port
        assert broker.running


@pytest.mark.live
@kinds
def test_a_strangers_broker_is_not_taken_for_ours(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another broker answers on the port that we lost: that is a failure, not a start."""
    with EmbeddedBroker(kind=kind) as stranger:
        ours = EmbeddedBroker(kind=kind, port=stranger.port)
        monkeypatch.setattr(broker_module, "_port_is_free", lambda _port: True)
        with pytest.raises(BrokerStartError, match=r"did not start: .*in use"):
            ours.start()
        assert not ours.running
        assert stranger.running


@pytest.mark.live
def test_a_broker_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error carries the last line of the broker's log."""
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho first\necho 'Error: out of onions'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(broker_module, "mosquitto_path", lambda: str(program))
    with pytest.raises(BrokerStartError, match="did not start: Error: out of onions"):
        EmbeddedBroker(kind="mosquitto").start()
    program.unlink()
    with pytest.raises(BrokerStartError, match="did not start: FileNotFoundError"):
        EmbeddedBroker(kind="mosquitto").start()


@pytest.mark.live
@pytest.mark.skipif("mosquitto" not in available_kinds(), reason="needs Mosquitto")
@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_link_has_no_more_under_way_than_the_server_receives(most: int) -> None:
    """Mosquitto says its `max_inflight_messages` as the receive maximum (MQTT 5.0, 3.2.2.3.3)."""
    with TunedBroker({"max_inflight_messages": str(most)}) as broker, link_to(broker) as (link, _):
        rooms = set()
        for _number in range(60):
            while link.room(limits.CHUNKS_IN_FLIGHT_MAX):
                link.publish(TOPIC, bytes(10_000))
            rooms.add(link.in_flight)
            time.sleep(0.01)
        assert max(rooms) == min(most, limits.CHUNKS_IN_FLIGHT_MAX)


@kinds
def test_what_the_broker_has_acknowledged_is_not_under_way(kind: Kind) -> None:
    with EmbeddedBroker(kind=kind) as broker, link_to(broker) as (link, received):
        for _number in range(200):
            link.publish(TOPIC, b"x")
        for _number in range(200):
            received.get(timeout=WAIT_S)
        until_s = time.monotonic() + WAIT_S
        while link.in_flight and time.monotonic() < until_s:
            time.sleep(0.01)
        assert (link.in_flight, link.in_flight_bytes) == (0, 0)
        assert link.room(4) > 0
