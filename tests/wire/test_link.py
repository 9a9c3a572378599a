import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import BrokerAddress, BrokerAddressError
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
