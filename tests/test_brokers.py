"""What brokers do not do, or do not allow: a federation works all the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from benchmarks.relay import Relay
from coordinator.broker import available_kinds
from fleet.toy import ToyTask
from tests.support.federated import Federated, TunedBroker
from tests.support.processes import until
from wire import BrokerAddress, MqttLink

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(120),
    pytest.mark.skipif("mosquitto" not in available_kinds(), reason="needs Mosquitto"),
]
# 23 KB as float16, which is 8 chunks each way in the smallest packets.
HIDDEN = 1_040
SMALLEST = 4_096

MATRIX: dict[str, dict[str, str]] = {
    "retained messages are not available": {"retain_available": "false"},
    "one message under way at a time": {"max_inflight_messages": "1"},
    "a receive maximum of 3": {"max_inflight_messages": "3"},
    "nothing is kept on disk": {"persistence": "false"},
    "the smallest packets": {"max_packet_size": str(SMALLEST)},
    "few messages may wait": {"max_queued_messages": "20"},
    "messages that wait are thrown away": {"max_queued_bytes": "20000"},
}


class Spoken:
    """Everything that anybody of this process has said to a broker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.filters: set[str] = set()
        self.topics: set[str] = set()
        self.qualities: set[int] = set()
        self.retained = 0
        subscribe, publish, will_set = (
            paho.Client.subscribe,
            paho.Client.publish,
            paho.Client.will_set,
        )

        def subscribed(client: Any, topic: Any, *rest: Any, **more: Any) -> Any:
            self.filters |= {name for name, _qos in topic}
            self.qualities |= {qos for _name, qos in topic}
            return subscribe(client, topic, *rest, **more)

        def noting(method: Callable[..., Any]) -> Callable[..., Any]:
            def said(
                client: Any, topic: str, payload: Any = None, qos: int = 0, *, retain: bool = False
            ) -> Any:
                self.topics.add(topic)
                self.qualities.add(qos)
                self.retained += retain
                return method(client, topic, payload, qos, retain)

            return said

        monkeypatch.setattr(paho.Client, "subscribe", subscribed)
        monkeypatch.setattr(paho.Client, "publish", noting(publish))
        monkeypatch.setattr(paho.Client, "will_set", noting(will_set))


def plays(federated: Federated, rounds: int = 2) -> None:
    """Every round counts every update, and everybody has the last release."""
    federated.start_all()
    until(
        lambda: all(device.model.version == rounds for device in federated.devices),
        "the release everywhere",
        90.0,
    )
    rows = federated.rows()
    assert [row.counted for row in rows] == [True] * (rounds * len(federated.devices))


@pytest.fixture
def close() -> Iterator[list[Any]]:
    """What a test has started; it ends in the opposite order."""
    started: list[Any] = []
    yield started
    for thing in reversed(started):
        thing.close() if hasattr(thing, "close") else thing.stop()


@pytest.mark.parametrize("settings", MATRIX.values(), ids=MATRIX.keys())
def test_a_federation_works_where(
    tmp_path: Path, close: list[Any], settings: dict[str, str]
) -> None:
    broker = TunedBroker(settings)
    close.append(broker)
    broker.start()
    federated = Federated(
        tmp_path,
        broker.url,
        devices=2,
        cohort=2,
        deadline_s=120.0,
        task=ToyTask(hidden=HIDDEN),
        codec="f16",
        packet_bytes_max=16_384,
    )
    close.append(federated)
    plays(federated)


def test_a_federation_works_where_mqtt_5_is_refused(tmp_path: Path, close: list[Any]) -> None:
    broker = TunedBroker({})
    close.append(broker)
    broker.start()
    relay = Relay(broker.port, mqtt5=False)
    close.append(relay)
    federated = Federated(tmp_path, relay.url, devices=2, cohort=2)
    close.append(federated)
    plays(federated)


def test_a_federation_works_where_the_broker_forgets_all_in_mid_round(
    tmp_path: Path, close: list[Any]
) -> None:
    broker = TunedBroker({"persistence": "false"})
    close.append(broker)
    broker.start()
    federated = Federated(
        tmp_path,
        broker.url,
        devices=2,
        cohort=2,
        deadline_s=120.0,
        task=ToyTask(hidden=HIDDEN),
        codec="f16",
        packet_bytes_max=SMALLEST,
    )
    close.append(federated)
    federated.start_all()
    until(lambda: any(r.what == "round_opened" for r in federated.reports), "a round")
    broker.kill()
    broker.start()
    until(
        lambda: all(device.model.version == 2 for device in federated.devices),
        "the release everywhere",
        100.0,
    )
    assert [row.counted for row in federated.rows()] == [True] * 4


def test_nothing_is_retained_and_no_subscription_is_shared(
    tmp_path: Path, close: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = Spoken(monkeypatch)
    broker = TunedBroker({})
    close.append(broker)
    broker.start()
    federated = Federated(tmp_path, broker.url, devices=2, cohort=2)
    close.append(federated)
    plays(federated)
    assert federated.devices[0].leave()
    assert spoken.topics
    assert spoken.filters
    assert not [name for name in spoken.filters if name.startswith("$")]
    assert spoken.retained == 0
    assert spoken.qualities == {1}
    # And what the broker itself has to say to somebody who comes late: nothing.
    heard: list[str] = []
    up: list[int] = []
    late = MqttLink(
        BrokerAddress.parse(broker.url),
        "late",
        subscriptions=("potluck/#",),
        on_message=lambda topic, _data: heard.append(topic),
        on_up=up.append,
        on_down=lambda _why: None,
    )
    late.start()
    until(lambda: up, "the subscription")
    late.publish("potluck/here", b"")
    until(lambda: heard, "what was said after that")
    late.stop()
    assert [topic for topic in heard if topic.endswith("/down")] == []
