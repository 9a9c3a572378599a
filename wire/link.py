"""The one place that knows paho-mqtt: a link to a broker, for a device, a coordinator or a fleet.

What a driver may count on: it is told when the link is up and down, it is handed (topic, payload)
pairs, and `publish` sends at QoS 1. What it may not count on: that anything published arrives, or
arrives once (a PUBACK promises nothing; receipts do). So the link keeps no session on the broker,
drops what was under way when it breaks, and leaves every resend to the machines above.

One link runs in its own thread (`start`), or is one of thousands in somebody's selector loop
(`connect`, `socket`, `read`, `write`, `misc`). Callbacks only hand over: no work is done in them.
"""

import contextlib
import ssl
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from socket import IPPROTO_TCP, TCP_NODELAY, gaierror
from socket import socket as Socket  # noqa: N812 - the class, beside the method of that name
from threading import Lock, RLock, Thread
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import (
    MQTT_CLEAN_START_FIRST_ONLY,
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from wire import limits
from wire.errors import PotluckError
from wire.guarded_client import GuardedClient
from wire.window import Window

RECONNECT_S_MIN = 1
RECONNECT_S_MAX = 60
KEEPALIVE_S = 60
_UNSUPPORTED_VERSION = 132  # MQTT 5 reason code, which paho also gives for 3.1.1's code 1
_PUBACK_BYTES = 4
_HANG_UPS_MAX = 2


class BrokerAddressError(PotluckError):
    """A broker URL that cannot be used; the text says what one looks like."""


class BrokerTrustError(PotluckError):
    """A CA, certificate or key that cannot be used; the text says which file and why."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "BrokerAddress":
        """Read `mqtt://host[:1883]` or `mqtts://host[:8883]`.

        Raises:
            BrokerAddressError: anything else.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BrokerAddressError(f"broker URL {url!r}: {error}") from error
        host = parts.hostname or ""
        plain = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password)
        if parts.scheme not in ("mqtt", "mqtts") or not host or any(plain) or port == 0:
            raise BrokerAddressError(
                f"broker URL {url!r}: write mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"
            )
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise BrokerAddressError(f"broker URL {url!r}: no host has such a name") from error
        tls = parts.scheme == "mqtts"
        return cls(host, port or (8883 if tls else 1883), tls)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the pinned CA and, for mutual TLS, of this side's certificate and key (PEM)."""

    ca: str
    certificate: str | None = None
    key: str | None = None


@dataclass(slots=True)
class Traffic:
    """Bytes of whole MQTT packets on this link, headers, topics and acknowledgements included."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    received_packets: int = 0


def why_not(address: BrokerAddress, error: OSError) -> str:
    """Why there is no connection to a broker, in one line for whoever has to put it right."""
    where = f"{address.host}:{address.port}"
    match error:
        case ssl.SSLCertVerificationError():
            said = error.verify_message.rstrip(".")
            return (
                f"the broker at {where} is not trusted: {said}; its certificate has to be of the"
                " federation's CA, for this name and for today"
            )
        case ssl.SSLError():
            return f"no TLS with {where}: {error}; is it a port for mqtts://?"
        case gaierror():
            return f"no broker at {where}: nobody knows a host of that name"
        case ConnectionRefusedError():
            return f"no broker at {where}: nothing listens there"
        case TimeoutError():
            return f"no broker at {where}: no answer"
        case _:
            return f"no broker at {where}: {error.strerror or error}"


def publish_packet_bytes(topic: str, payload_bytes: int, *, mqtt5: bool) -> int:
    """Size of a QoS 1 PUBLISH packet (MQTT 5.0, section 3.3; 3.1.1 has no property length)."""
    remaining = 2 + len(topic.encode()) + 2 + (1 if mqtt5 else 0) + payload_bytes
    length_bytes = -(-remaining.bit_length() // 7)  # a variable byte integer (section 1.5.5)
    return 1 + length_bytes + remaining


class MqttLink:
    """A connection that comes back.

    Args:
        address: the broker.
        client_id: stable; a random one loses its session on brokers that keep one.
        subscriptions: topic filters, subscribed at every connect.
        on_message: called with (topic, payload).
        on_up: called with the packet size that broker and configuration allow, once subscribed.
        on_down: called with a word about why.
        will: makes the last will's (topic, payload) at each connect, or None for none.
        packet_bytes_max: this side's own packet limit.
        tls: needed for `mqtts://`.
        keepalive_s: how long both sides may be silent before they ask.
        on_taken: called whenever the broker has acknowledged a publication, in the middle of
            paho's own work: it must neither wait nor publish.

    Raises:
        BrokerAddressError: `mqtts://` without a CA.
        BrokerTrustError: a file of `tls` cannot be used.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        subscriptions: tuple[str, ...],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[int], None],
        on_down: Callable[[str], None],
        will: Callable[[], tuple[str, bytes]] | None = None,
        packet_bytes_max: int = limits.PACKET_BYTES_MAX_DEFAULT,
        tls: TlsFiles | None = None,
        keepalive_s: int = KEEPALIVE_S,
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        if address.tls and tls is None:
            raise BrokerAddressError("mqtts:// needs a CA file: TLS without one trusts anybody")
        self.traffic = Traffic()
        self.up = False
        self._address = address
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._on_message_cb = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._will = will
        self._on_taken = on_taken
        self._packet_bytes_max = packet_bytes_max
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._window = Window()
        # By packet id, in the order of publishing: bytes, and when that was.
        self._pending: dict[int, tuple[int, float]] = {}
        self._taken_early: set[int] = set()
        self._pending_bytes = 0
        self._pending_lock = Lock()  # whoever publishes, and paho's own thread
        self._closed_early = 0
        self._rebuilding = False
        self._subscribing: set[int] = set()
        self._threaded = False
        self._stopped = False
        # `start`, `stop` and the thread that changes the protocol's version: one after the other.
        self._switching = RLock()
        self._client = self._make_client()

    # -- making the client -------------------------------------------------------------------

    def _make_client(self) -> GuardedClient:
        client = GuardedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._protocol,
            clean_session=None if self._mqtt5 else True,
            reconnect_on_failure=True,
        )
        client.tls_name = self._address.host
        client.packet_bytes_max = max(self._packet_bytes_max, limits.PACKET_BYTES_MAX_DEFAULT)
        client.max_inflight_messages_set(limits.CHUNKS_IN_FLIGHT_MAX)
        client.reconnect_delay_set(RECONNECT_S_MIN, RECONNECT_S_MAX)
        client.on_connect = self._connected
        client.on_connect_fail = self._connect_failed
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_publish = self._published
        client.on_message = self._received
        client.on_socket_open = _set_nodelay
        if self._tls is not None and self._address.tls:
            try:
                client.tls_set(
                    ca_certs=self._tls.ca,
                    certfile=self._tls.certificate,
                    keyfile=self._tls.key,
                    tls_version=ssl.PROTOCOL_TLS_CLIENT,
                )
            except (OSError, ValueError) as error:
                files = [f for f in (self._tls.ca, self._tls.certificate, self._tls.key) if f]
                raise BrokerTrustError(
                    f"{', '.join(files)}: {error}; they have to be PEM files, of a CA, of this"
                    " side's certificate and of its key"
                ) from error
        if self._will is not None:
            topic, payload = self._will()
            client.will_set(topic, payload, qos=1)
        return client

    @property
    def _mqtt5(self) -> bool:
        return self._protocol == MQTTProtocolVersion.MQTTv5

    def _connect_properties(self) -> Any:
        if not self._mqtt5:
            return None
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
        properties.SessionExpiryInterval = 0
        # Brokers drop what is larger in silence, so this is a guard against floods and not the
        # limit that senders go by: that one travels in Invite and FetchRequest.
        properties.MaximumPacketSize = max(self._packet_bytes_max, limits.PACKET_BYTES_MAX_DEFAULT)
        return properties

    # -- running -----------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and run in a thread of its own; retries by itself, also the first time.

        A link that was stopped may be started again.
        """
        with self._switching:
            if self._stopped:
                self._client = self._make_client()  # paho's, started twice, loses its sockets
            self._threaded, self._stopped = True, False
            self._client.connect_async(
                self._address.host,
                self._address.port,
                keepalive=self._keepalive_s,
                clean_start=True if self._mqtt5 else MQTT_CLEAN_START_FIRST_ONLY,
                properties=self._connect_properties(),
            )
            self._client.loop_start()

    def stop(self) -> None:
        """Disconnect in good order and end the thread."""
        self._stopped = True
        with self._switching:
            self._stopped = True  # also if another thread has just begun anew
            self._client.disconnect()
            if self._threaded:
                self._client.loop_stop()
            self.up = False

    def connect(self) -> None:
        """Connect without a thread; whoever calls runs `read`, `write` and `misc`.

        Raises:
            OSError: nobody listens there.
        """
        if self._rebuilding:
            self._rebuild(self._client)
        self._client.connect(
            self._address.host,
            self._address.port,
            keepalive=self._keepalive_s,
            clean_start=True if self._mqtt5 else MQTT_CLEAN_START_FIRST_ONLY,
            properties=self._connect_properties(),
        )

    def drop(self) -> None:
        """Break the connection without a word, as a device does that vanishes."""
        sock = self.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)

    def socket(self) -> Socket | ssl.SSLSocket | None:
        """The socket to select on, or None when there is no connection."""
        found: Any = self._client.socket()
        return found if isinstance(found, Socket) else None

    def wants_write(self) -> bool:
        """Whether bytes wait to be written."""
        return self._client.want_write()

    def read(self) -> None:
        """Take what the socket has."""
        self._client.loop_read()

    def write(self) -> None:
        """Give the socket what waits."""
        self._client.loop_write()

    def misc(self) -> None:
        """Keepalive; to be called about once a second."""
        self._client.loop_misc()

    # -- speaking ----------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1. While the link is down the message is dropped: machines resend."""
        if not self.up:
            return
        info = self._client.publish(topic, payload, qos=1)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            return
        size = publish_packet_bytes(topic, len(payload), mqtt5=self._mqtt5)
        with self._pending_lock:
            if info.mid in self._taken_early:
                self._taken_early.discard(info.mid)  # the broker was quicker than this thread
            else:
                self._pending[info.mid] = (size, time.monotonic())
                self._pending_bytes += size
        self.traffic.sent_bytes += size
        self.traffic.sent_packets += 1

    def room(self, most: int) -> int:
        """How many more publications the link can use now, if `most` may be under way at once.

        Never so many that the broker would not take them, and fewer while it takes them slowly:
        see `wire.window`. `on_taken` says when to look again.
        """
        with self._pending_lock:
            return max(min(most, self._window.size) - len(self._pending), 0)

    @property
    def in_flight(self) -> int:
        """How many publications the broker has not acknowledged yet."""
        return len(self._pending)

    @property
    def in_flight_bytes(self) -> int:
        """How many bytes of packets wait in memory, until the broker has acknowledged them."""
        return self._pending_bytes

    # -- paho's callbacks --------------------------------------------------------------------

    def _connected(
        self,
        client: Client,
        _userdata: Any,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            if reason.value == _UNSUPPORTED_VERSION:
                self._speak_another()
            self._on_down(f"the broker refused the connection: {reason}")
            return
        self._closed_early = 0
        allowed = getattr(properties, "MaximumPacketSize", None) if properties else None
        self._allowed_bytes = min(self._packet_bytes_max, allowed or self._packet_bytes_max)
        inflight = getattr(properties, "ReceiveMaximum", None) if properties else None
        # Its setter refuses once connected, for fear of a step between 0 and more; both are more.
        client._max_inflight_messages = min(  # noqa: SLF001 - CONNACK comes with the connection
            limits.CHUNKS_IN_FLIGHT_MAX, inflight or limits.CHUNKS_IN_FLIGHT_MAX
        )
        self._forget_pending()  # what somebody published while the last connection went
        self._window.allow(inflight or limits.CHUNKS_IN_FLIGHT_MAX)
        _result, mid = client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._subscribing = {mid} if mid is not None else set()

    def _subscribed(
        self,
        _client: Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if mid not in self._subscribing:
            return
        self._subscribing.clear()
        if any(reason.is_failure for reason in reasons):
            self._on_down(f"the broker refused the subscription: {reasons[0]}")
            self.drop()  # and try again, as after any other loss
            return
        self.up = True
        self._on_up(self._allowed_bytes)

    def _connect_failed(self, client: Client, _userdata: Any) -> None:
        failure = getattr(client, "failure", None)
        self._on_down("no connection" if failure is None else why_not(self._address, failure))

    def _disconnected(
        self,
        client: Client,
        _userdata: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        was_up, self.up = self.up, False
        self._drop_what_waits(client)
        if was_up:
            self._on_down(str(reason))
        else:
            # Some brokers do not answer a version that they do not know: they hang up.
            self._closed_early += 1
            if self._closed_early >= _HANG_UPS_MAX:
                where = f"{self._address.host}:{self._address.port}"
                self._on_down(f"the broker at {where} hangs up before it takes the connection")
                self._speak_another()

    def _speak_another(self) -> None:
        """Go on in MQTT 3.1.1 instead of 5, or the other way; that takes another client."""
        if self._rebuilding or self._stopped:
            return
        self._rebuilding = True
        if self._threaded:
            # Not on paho's own thread, which has to end first.
            rebuild = Thread(
                target=self._rebuild, args=(self._client,), name="potluck-link", daemon=True
            )
            rebuild.start()

    def _rebuild(self, old: Client) -> None:
        with self._switching:
            self._rebuilding = False
            if self._stopped or self._client is not old:
                return  # stopped meanwhile, and perhaps started again: with a client of its own
            if self._threaded:
                old.disconnect()
                old.loop_stop()
            other = MQTTProtocolVersion.MQTTv311 if self._mqtt5 else MQTTProtocolVersion.MQTTv5
            self._protocol = other
            self._closed_early = 0
            self._client = self._make_client()
            if self._threaded and not self._stopped:
                self.start()

    def _drop_what_waits(self, client: Client) -> None:
        """Forget what was under way: machines send it again, and only what is missing.

        Left to itself paho sends its queue again, some of it twice, and can lose count of its own
        window on the way: with more waiting than the window it then sends nothing any more.
        """
        client.drop_out_messages()
        with self._pending_lock:
            # Only a window of them can have left; the others were counted and never sent.
            for size, _sent_s in list(self._pending.values())[limits.CHUNKS_IN_FLIGHT_MAX :]:
                self.traffic.sent_bytes -= size
                self.traffic.sent_packets -= 1
            if self._pending:
                self._window.lost()
        self._forget_pending()

    def _forget_pending(self) -> None:
        with self._pending_lock:
            self._pending.clear()
            self._taken_early.clear()
            self._pending_bytes = 0

    def _published(
        self,
        _client: Client,
        _userdata: Any,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self.traffic.received_bytes += _PUBACK_BYTES
        with self._pending_lock:
            under_way = len(self._pending)
            size, sent_s = self._pending.pop(mid, (0, None))
            self._pending_bytes -= size
            if sent_s is None:
                self._taken_early.add(mid)
            else:
                self._window.taken(time.monotonic() - sent_s, under_way)
        self._on_taken()

    def _received(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.traffic.received_bytes += publish_packet_bytes(
            message.topic, len(message.payload), mqtt5=self._mqtt5
        )
        self.traffic.received_packets += 1
        self.traffic.sent_bytes += _PUBACK_BYTES
        self._on_message_cb(message.topic, bytes(message.payload))


def _set_nodelay(_client: Client, _userdata: Any, sock: Any) -> None:
    """Without it a loopback round trip costs 40 ms (Nagle against delayed acknowledgements)."""
    with contextlib.suppress(OSError, AttributeError), warnings.catch_warnings():
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
