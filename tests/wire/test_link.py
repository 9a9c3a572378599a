import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from wire import BrokerAddress, BrokerAddressError, MqttLink
from wire.guarded_client import GuardedClient
from wire.link import publish_packet_bytes


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://gateway", BrokerAddress("gateway", 1883, tls=False)),
        ("mqtts://gateway", BrokerAddress("gateway", 8883, tls=True)),
        ("mqtt://gateway:8883", BrokerAddress("gateway", 8883, tls=False)),
        ("mqtts://gateway:1/", BrokerAddress("gateway", 1, tls=True)),
        ("MQTT://Gateway.Local:65535", BrokerAddress("gateway.local", 65_535, tls=False)),
        ("mqtt://192.0.2.1", BrokerAddress("192.0.2.1", 1883, tls=False)),
        ("mqtt://[2001:db8::1]:1884", BrokerAddress("2001:db8::1", 1884, tls=False)),
    ],
)
def test_a_url_says_where_a_broker_listens(url: str, address: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway",
        "gateway:1883",
        "mqtt:gateway",
        "mqtt://",
        "mqtt://:1883",
        "http://gateway",
        "ws://gateway",
        "mqtt://gateway:port",
        "mqtt://gateway:0",
        "mqtt://gateway:-1",
        "mqtt://gateway:65536",
        "mqtt://[2001:db8::1",
        "mqtt://user:password@gateway",
        "mqtt://user@gateway",
        "mqtt://gateway/federation",
        "mqtt://gateway?tls=1",
        "mqtt://gateway#x",
        "mqtt://gateway..example",
        "mqtt://.example",
        "mqtt://" + 64 * "x",
    ],
)
def test_what_is_no_brokers_url_is_refused_with_what_one_looks_like(url: str) -> None:
    with pytest.raises(BrokerAddressError, match="broker URL"):
        BrokerAddress.parse(url)


@given(st.text(max_size=40) | st.text(max_size=20).map("mqtt://".__add__))
def test_any_text_is_an_address_or_a_broker_address_error(text: str) -> None:
    try:
        address = BrokerAddress.parse(text)
    except BrokerAddressError:
        return
    assert address.host
    assert 1 <= address.port <= 65_535


@pytest.mark.parametrize(
    ("payload_bytes", "packet_bytes"),
    [(0, 7), (122, 129), (123, 131), (16_378, 16_386), (16_379, 16_388), (2_097_147, 2_097_157)],
)
def test_the_length_field_grows_where_mqtt_says(payload_bytes: int, packet_bytes: int) -> None:
    assert publish_packet_bytes("t", payload_bytes, mqtt5=False) == packet_bytes


def length_field(size: int) -> bytes:
    """A variable byte integer, as MQTT 5.0 writes its algorithm (section 1.5.5)."""
    encoded = bytearray()
    while True:
        size, byte = divmod(size, 128)
        encoded.append(byte | 0x80 if size else byte)
        if not size:
            return bytes(encoded)


@given(
    topic=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60),
    payload_bytes=st.integers(0, 40_000),
)
def test_a_packet_has_as_many_bytes_as_one_written_by_hand(topic: str, payload_bytes: int) -> None:
    name = topic.encode()
    rest = len(name).to_bytes(2, "big") + name + b"\x00\x01"  # the packet's id
    for mqtt5, properties in ((False, b""), (True, b"\x00")):
        body = rest + properties + bytes(payload_bytes)
        packet = b"\x32" + length_field(len(body)) + body
        assert publish_packet_bytes(topic, payload_bytes, mqtt5=mqtt5) == len(packet)


def made(**given: Any) -> MqttLink:
    return MqttLink(
        BrokerAddress("127.0.0.1", 9, tls=False),
        "d1",
        subscriptions=(),
        on_message=lambda _topic, _payload: None,
        on_up=lambda _bytes: None,
        on_down=lambda _why: None,
        **given,
    )


def test_a_client_whose_thread_ends_while_it_is_stopped_is_stopped() -> None:
    """Paho looks for its thread twice: it may be gone the second time."""

    class Fleeting(GuardedClient):
        looks = 0

        @property
        def _thread(self) -> threading.Thread | None:
            self.looks += 1
            return ended if self.looks == 1 else None

        @_thread.setter
        def _thread(self, _thread: threading.Thread | None) -> None:
            self.looks = 0

    ended = threading.Thread()
    ended.start()
    client = Fleeting(CallbackAPIVersion.VERSION2)
    assert client.loop_stop() == MQTTErrorCode.MQTT_ERR_SUCCESS


def test_a_name_that_cannot_be_resolved_is_a_failure_and_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(_client: Client) -> None:
        raise UnicodeError("label too long")

    monkeypatch.setattr(Client, "reconnect", wrong)
    client = GuardedClient(CallbackAPIVersion.VERSION2)
    with pytest.raises(OSError, match="label too long"):
        client.reconnect()
    assert client.failure is not None


def test_a_change_of_the_protocol_that_comes_late_leaves_a_link_that_began_anew_alone() -> None:
    link = made()
    old = link._client
    link._threaded = link._rebuilding = True
    link.stop()
    link._rebuild(old)
    assert link._client is old  # a link that was stopped stays so
    link._client = new = link._make_client()
    link._stopped, link._rebuilding = False, True
    link._rebuild(old)
    assert (link._client, link._mqtt5, link._rebuilding) == (new, True, False)
