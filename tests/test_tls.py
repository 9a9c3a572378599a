"""A device trusts one CA: brokers of others hear nothing from it, and it says what is wrong."""

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.relay import Relay
from coordinator.broker import available_kinds, free_port
from edge_sdk import EnrolmentError
from tests.support.certificates import Authority
from tests.support.federated import Federated, TunedBroker
from tests.support.processes import until
from wire import BrokerAddress, BrokerTrustError, MqttLink, TlsFiles
from wire.link import why_not

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

needs_mosquitto = pytest.mark.skipif("mosquitto" not in available_kinds(), reason="needs Mosquitto")
HOST = "127.0.0.1"


class Listener:
    """A TLS server that keeps what it is told, decrypted."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.heard = b""
        self.handshakes = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            raw.settimeout(2.0)
            self.handshakes += 1
            try:
                with self._context.wrap_socket(raw, server_side=True) as client:
                    self.heard += client.recv(4_096)
            except OSError:
                raw.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def close() -> Iterator[list[Any]]:
    """What a test has started; it ends in the opposite order."""
    started: list[Any] = []
    yield started
    for thing in reversed(started):
        thing.close() if hasattr(thing, "close") else thing.stop()


def test_a_broker_of_another_ca_hears_nothing_and_is_tried_again(
    tmp_path: Path, close: list[Any]
) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    for certificate in (
        theirs.issue(HOST),
        ours.issue("elsewhere.test"),
        ours.issue(HOST, days=-1),
    ):
        listener = Listener(*certificate)
        close.append(listener)
        reasons: list[str] = []
        link = MqttLink(
            BrokerAddress(HOST, listener.port, tls=True),
            "device",
            subscriptions=("potluck/1/toy/d/down",),
            on_message=lambda _topic, _data: None,
            on_up=lambda _size: None,
            on_down=reasons.append,
            tls=TlsFiles(str(ours.path)),
        )
        link.start()
        until(lambda n=listener: n.handshakes >= 2, "the second try")  # type: ignore[misc]
        link.stop()
        assert listener.heard == b""
        assert all(f"the broker at {HOST}:{listener.port} is not trusted" in r for r in reasons)
        assert not any("\n" in reason for reason in reasons)


@needs_mosquitto
def test_a_device_says_what_is_wrong_goes_on_trying_and_works_when_it_is_right(
    tmp_path: Path, close: list[Any]
) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    ports = [free_port() for _ in range(3)]
    more: list[str] = []
    certificates = (theirs.issue(HOST), ours.issue("elsewhere.test"), ours.issue(HOST))
    for port, (certificate, key) in zip(ports, certificates, strict=True):
        more += [f"listener {port} {HOST}", f"certfile {certificate}", f"keyfile {key}"]
    broker = TunedBroker({}, more)
    close.append(broker)
    broker.start()
    relay = Relay(ports[2])
    close.append(relay)
    federated = Federated(
        tmp_path,
        broker.url,
        devices=1,
        device_broker=f"mqtts://{HOST}:{relay.port}",
        ca=ours.path,
    )
    close.append(federated)
    device = federated.enrolled(0)
    for wrong, words in ((ports[0], "certificate verify"), (ports[1], "not valid for")):
        relay.redirect(wrong)
        device.start()
        said = until(
            lambda: [r.detail for r in federated.said[0] if r.what == "broker_down"],
            "a word about the broker",
        )
        assert "is not trusted" in said[-1]
        assert words in said[-1] or "unable to get" in said[-1] or "self-signed" in said[-1]
        assert device.running
        assert device.model.version == 0
        device.stop()
        federated.said[0].clear()
    relay.redirect(ports[0])
    device.start()
    until(lambda: federated.said[0], "a word about the broker")
    relay.redirect(ports[2])
    until(lambda: device.model.version == 2, "the release")


@needs_mosquitto
def test_enrolment_says_that_the_broker_is_not_trusted(tmp_path: Path, close: list[Any]) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    listener = Listener(*theirs.issue(HOST))
    close.append(listener)
    broker = TunedBroker({})
    close.append(broker)
    broker.start()
    federated = Federated(tmp_path, broker.url, devices=1, ca=ours.path)
    close.append(federated)
    with pytest.raises(EnrolmentError, match="is not trusted") as caught:
        federated.enrolled(0, broker=f"mqtts://{HOST}:{listener.port}", enrol_s=3.0)
    assert "\n" not in str(caught.value)
    assert listener.heard == b""


def test_a_ca_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(BrokerTrustError, match=r"ca\.pem") as caught:
        MqttLink(
            BrokerAddress(HOST, 8883, tls=True),
            "device",
            subscriptions=(),
            on_message=lambda _topic, _data: None,
            on_up=lambda _size: None,
            on_down=lambda _why: None,
            tls=TlsFiles(str(tmp_path / "ca.pem")),
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens there"),
        (TimeoutError("timed out"), "no answer"),
        (socket.gaierror(-2, "Name or service not known"), "nobody knows a host"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "no TLS"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
    ],
)
def test_each_reason_is_told_in_one_line(error: OSError, words: str) -> None:
    said = why_not(BrokerAddress("gateway", 8883, tls=True), error)
    assert words in said
    assert "gateway:8883" in said
    assert "\n" not in said
