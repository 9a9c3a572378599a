"""The broker model and a real Mosquitto are played the same scripts, and deliver the same."""

import socket
import time
from collections import defaultdict
from collections.abc import Iterator

import paho.mqtt.client as mqtt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from coordinator import EmbeddedBroker
from coordinator.broker import mosquitto_path
from fleet.broker_model import BrokerModel, Closed, Delivery, matches

NAMES = ("a", "b", "c")
TOPICS = ("t/a/up", "t/b/up", "t/a/down", "t/b/down")
FILTERS = {"a": ("t/a/down",), "b": ("t/+/up",), "c": ("t/#",)}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), st.sampled_from(NAMES)),
        st.tuples(st.just("disconnect"), st.sampled_from(NAMES)),
        st.tuples(st.just("drop"), st.sampled_from(NAMES)),
        st.tuples(st.just("publish"), st.sampled_from(NAMES), st.sampled_from(TOPICS)),
    ),
    max_size=14,
)
PATIENCE_S = 5.0
QUIET_S = 0.03


class Played:
    """A script on a real broker; every step waits until it is done."""

    def __init__(self, port: int, run: int) -> None:
        self.delivered: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        self._port, self._run = port, run
        self._clients: dict[str, mqtt.Client] = {}
        self._ready: set[str] = set()

    def connect(self, name: str) -> None:
        if name in self._clients:
            self.drop(name, wait=False)
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{name}-{self._run}",
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.will_set(f"{self._run}/t/{name}/up", f"will of {name}".encode(), qos=1)
        client.on_message = lambda _c, _u, m: self.delivered[name].append(
            (m.topic.partition("/")[2], bytes(m.payload))
        )
        client.on_subscribe = lambda *_: self._ready.add(name)
        self._ready.discard(name)
        client.connect("127.0.0.1", self._port, clean_start=True)
        client.loop_start()
        client.subscribe([(f"{self._run}/{pattern}", 1) for pattern in FILTERS[name]])
        self._clients[name] = client
        give_up = time.monotonic() + PATIENCE_S
        while name not in self._ready and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(QUIET_S)

    def disconnect(self, name: str) -> None:
        client = self._clients.pop(name, None)
        if client is not None:
            client.disconnect()
            client.loop_stop()
            time.sleep(QUIET_S)

    def drop(self, name: str, *, wait: bool = True) -> None:
        client = self._clients.pop(name, None)
        if client is not None:
            sock = client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            client.loop_stop()
            if wait:
                time.sleep(QUIET_S)
        time.sleep(QUIET_S)

    def publish(self, name: str, topic: str, payload: bytes) -> None:
        client = self._clients.get(name)
        if client is not None:
            client.publish(f"{self._run}/{topic}", payload, qos=1).wait_for_publish(PATIENCE_S)
            time.sleep(QUIET_S)

    def close(self) -> None:
        for name in tuple(self._clients):
            self.disconnect(name)


def modelled(steps: list[tuple[str, ...]]) -> dict[str, list[tuple[str, bytes]]]:
    broker = BrokerModel(packet_bytes_max=100_000)
    delivered: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for number, (deed, name, *rest) in enumerate(steps):
        match deed:
            case "connect":
                will = (f"t/{name}/up", f"will of {name}".encode())
                outcomes = broker.connect(name, FILTERS[name], will)
            case "disconnect":
                outcomes = broker.disconnect(name)
            case "drop":
                outcomes = broker.drop(name)
            case _:
                outcomes = broker.publish(name, rest[0], str(number).encode())
        for outcome in outcomes:
            if isinstance(outcome, Delivery):
                delivered[outcome.client].append((outcome.topic, outcome.payload))
    return delivered


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with EmbeddedBroker(kind="mosquitto") as broker:
        yield broker.port


RUNS = iter(range(1_000_000))


@pytest.mark.live
@pytest.mark.skipif(mosquitto_path() is None, reason="the model is of Mosquitto, which is not here")
@pytest.mark.timeout(300)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_model_delivers_what_mosquitto_delivers(
    port: int, steps: list[tuple[str, ...]]
) -> None:
    played = Played(port, next(RUNS))
    try:
        for number, (deed, name, *rest) in enumerate(steps):
            match deed:
                case "connect":
                    played.connect(name)
                case "disconnect":
                    played.disconnect(name)
                case "drop":
                    played.drop(name)
                case _:
                    played.publish(name, rest[0], str(number).encode())
    finally:
        played.close()
    expected = modelled(steps)
    for name in NAMES:
        assert sorted(played.delivered[name]) == sorted(expected[name])


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("#", "a", True),
        ("a/b", "a", False),
        ("+/+", "a", False),
    ],
)
def test_filters_match_as_in_the_standard(pattern: str, topic: str, *, fits: bool) -> None:
    assert matches(pattern, topic) is fits


def test_what_is_too_large_closes_its_sender() -> None:
    broker = BrokerModel(packet_bytes_max=100)
    broker.connect("a", ("x",), ("x", b"will"))
    broker.connect("b", ("x",))
    outcomes = broker.publish("a", "x", bytes(200))
    assert outcomes == [Closed("a"), Delivery("b", "x", b"will")]


def test_a_killed_broker_remembers_nothing() -> None:
    broker = BrokerModel(packet_bytes_max=100)
    broker.connect("a", ("x",), ("x", b"will"))
    assert broker.kill() == ["a"]
    assert broker.publish("a", "x", b"y") == []
    assert broker.connected == frozenset()
