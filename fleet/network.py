"""The network of a world: links with delay and rate that break, freeze, lose and double.

A link is a TCP connection to the broker: two pipes that keep their order, until it breaks and
takes what was under way with it. `Weather` adds what bridges and clusters of brokers do: lost,
doubled and reordered publications.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fleet.broker_model import BrokerModel, Closed, Outcome
from fleet.disk import Fuse
from fleet.world import World
from wire import Traffic
from wire.link import KEEPALIVE_S, RECONNECT_S_MAX, RECONNECT_S_MIN, publish_packet_bytes
from wire.window import Window

Packet = tuple[str, bytes]
# MQTT 5.0, section 3.1.2.10: a server waits one and a half times the keep-alive.
SILENCE_S: Final = 1.5 * KEEPALIVE_S
_PUBACK_BYTES: Final = 4
_HANDSHAKES: Final = 3


@dataclass
class Weather:
    """What happens to publications at the broker: probabilities, and the longest extra delay."""

    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    delay_s_max: float = 30.0


@dataclass
class Callbacks:
    """Whom a link serves."""

    filters: Callable[[], tuple[str, ...]]
    will: Callable[[], Packet | None]
    on_up: Callable[[int], None]
    on_down: Callable[[str], None]
    on_message: Callable[[str, bytes], None]
    on_ack: Callable[[], None] = lambda: None


@dataclass
class _Pipe:
    """One direction: bytes leave one after the other."""

    bytes_per_s: float
    free_at_s: float = 0.0
    frozen: bool = False
    held: list[Packet] = field(default_factory=list)

    def departs_at_s(self, now_s: float, size: int) -> float:
        """When the last byte of a packet has left."""
        self.free_at_s = max(self.free_at_s, now_s) + size / self.bytes_per_s
        return self.free_at_s


class Network:
    """A broker and everything that is connected to it."""

    def __init__(self, world: World, packet_bytes_max: int) -> None:
        self.world = world
        self.broker = BrokerModel(packet_bytes_max)
        self.broker_up = True
        self.weather = Weather()
        self.links: dict[str, VirtualLink] = {}
        self.on_sent: Callable[[str, bytes], None] = lambda _client, _payload: None

    def kill_broker(self, for_s: float) -> None:
        """SIGKILL: every connection breaks, everything under way is gone."""
        self.broker_up = False
        for name in self.broker.kill():
            self.links[name].broken("broker_killed")
        self.world.after(for_s, "broker up", self.restart_broker)

    def restart_broker(self) -> None:
        """It is back, and remembers nothing."""
        self.broker_up = True

    def publish(self, client: str, topic: str, payload: bytes) -> None:
        """A publication has reached the broker."""
        weather, world = self.weather, self.world
        if weather.lost and world.uniform() < weather.lost:
            return
        copies = 2 if weather.doubled and world.uniform() < weather.doubled else 1
        for _ in range(copies):
            if weather.delayed and world.uniform() < weather.delayed:
                delay_s = world.uniform(0.0, weather.delay_s_max)
                world.after(
                    delay_s, f"late {client}", lambda: self._publish(client, topic, payload)
                )
            else:
                self._publish(client, topic, payload)

    def _publish(self, client: str, topic: str, payload: bytes) -> None:
        if self.broker_up:
            self.carry_out(self.broker.publish(client, topic, payload))

    def carry_out(self, outcomes: list[Outcome]) -> None:
        """Do what the broker has decided."""
        for outcome in outcomes:
            link = self.links[outcome.client]
            if isinstance(outcome, Closed):
                link.broken("closed_by_broker")
            else:
                link.deliver(outcome.topic, outcome.payload)


class VirtualLink:
    """One client's connection; the `Link` that an emulated device sends on.

    Args:
        network: where the broker is.
        name: the MQTT client id.
        callbacks: whom it serves.
        fuse: of the process that it belongs to.
        delay_s: one way, to the broker.
        up_bytes_per_s, down_bytes_per_s: what the link carries.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        callbacks: Callbacks,
        fuse: Fuse,
        *,
        delay_s: float,
        up_bytes_per_s: float,
        down_bytes_per_s: float,
    ) -> None:
        self.name = name
        self.traffic = Traffic()
        self.up = False
        self.allowed = True
        self.slowed = 1.0
        self._network = network
        self._world = network.world
        self._callbacks = callbacks
        self._fuse = fuse
        self._delay_s = delay_s
        self._out = _Pipe(up_bytes_per_s)
        self._in = _Pipe(down_bytes_per_s)
        self._window = Window()
        # When what has no acknowledgement was sent.
        self._under_way: deque[float] = deque()
        self._connection = 0
        self._connecting = False
        self._backoff_s = float(RECONNECT_S_MIN)
        network.links[name] = self

    # -- the host ----------------------------------------------------------------------------

    def connect(self) -> None:
        """Try to connect, and go on trying."""
        if self.up or self._connecting or not self.allowed:
            return
        self._connecting = True
        self._world.after(_HANDSHAKES * self._delay_s, f"connect {self.name}", self._connected)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send; while the link is down the message is dropped, as `MqttLink` does."""
        self._fuse.burn()
        if self.up:
            size = publish_packet_bytes(topic, len(payload), mqtt5=True)
            self.traffic.sent_bytes += size
            self.traffic.sent_packets += 1
            self._under_way.append(self._world.now_s)
            self._network.on_sent(self.name, payload)
            leaves_s = self._out.departs_at_s(self._world.now_s, int(size * self.slowed))
            connection = self._connection
            self._world.after(
                leaves_s + self._delay_s - self._world.now_s,
                f"up {self.name} {_mark(payload)}",
                lambda: self._arrived(connection, topic, payload),
            )
        self._fuse.burn()

    def room(self, most: int) -> int:
        """How many more publications it can use now, as `MqttLink` says it."""
        return max(min(most, self._window.size) - len(self._under_way), 0)

    def drop(self) -> None:
        """Break the connection without a word."""
        self.broken("dropped")

    def hang_up(self) -> None:
        """Be away until somebody allows the link again and connects."""
        self.allowed = False
        if self.up:
            # What was said before is still on its way.
            self.up = False
            self._world.after(
                self._out.departs_at_s(self._world.now_s, 0) + self._delay_s - self._world.now_s,
                f"bye {self.name}",
                self._said_goodbye(self._connection),
            )
            self._callbacks.on_down("hung_up")

    def _said_goodbye(self, connection: int) -> Callable[[], None]:
        def end() -> None:
            if connection == self._connection:
                self._connection += 1
                self._let_broker_know(self._connection)()

        return end

    def end(self, *, silent: bool) -> None:
        """The host is gone; the broker finds out at once, or when its patience ends."""
        self.allowed = False
        was_up, self.up = self.up, False
        self._connection += 1
        self._window = Window()
        self._under_way.clear()
        self._out.held.clear()
        self._in.held.clear()
        if was_up:
            self._world.after(
                SILENCE_S if silent else self._delay_s,
                f"gone {self.name}",
                self._let_broker_know(self._connection),
            )

    # -- faults ------------------------------------------------------------------------------

    def freeze(self, *, out: bool, into: bool, for_s: float) -> None:
        """A partition, one way or both: nothing passes, and nobody is told."""
        self._out.frozen, self._in.frozen = out, into
        connection = self._connection
        self._world.after(for_s, f"thaw {self.name}", self._thaw)
        if for_s >= SILENCE_S:
            self._world.after(
                SILENCE_S,
                f"silent {self.name}",
                lambda: self.broken("silent") if connection == self._connection else None,
            )

    def _thaw(self) -> None:
        self._out.frozen = self._in.frozen = False
        out, self._out.held = self._out.held, []
        into, self._in.held = self._in.held, []
        for topic, payload in out:
            self._taken()
            self._network.publish(self.name, topic, payload)
        for topic, payload in into:
            self._callbacks.on_message(topic, payload)

    def broken(self, reason: str) -> None:
        """The connection is lost: what was under way is lost with it."""
        if not self.up:
            return
        self.up = False
        self._connection += 1
        if self._under_way:
            self._window.lost()
        self._under_way.clear()
        self._out.held.clear()
        self._in.held.clear()
        self._world.after(0.0, f"gone {self.name}", self._let_broker_know(self._connection))
        self._callbacks.on_down(reason)
        self._try_later()

    def roam(self, delay_s: float) -> None:
        """Another network, with another address and another way to the broker."""
        self.broken("roamed")
        self._delay_s = delay_s

    # -- the wire ----------------------------------------------------------------------------

    def _let_broker_know(self, connection: int) -> Callable[[], None]:
        def tell() -> None:
            if connection == self._connection and self._network.broker_up:
                self._network.carry_out(self._network.broker.drop(self.name))

        return tell

    def _connected(self) -> None:
        self._connecting = False
        if not self.allowed or self.up:
            return
        if not self._network.broker_up or self._out.frozen or self._in.frozen:
            self._try_later()
            return
        self._backoff_s = float(RECONNECT_S_MIN)
        self._connection += 1
        self._out.free_at_s = self._in.free_at_s = self._world.now_s
        self.up = True
        broker = self._network.broker
        outcomes = broker.connect(self.name, self._callbacks.filters(), self._callbacks.will())
        # An older connection of ours is no news to us.
        self._network.carry_out([o for o in outcomes if not isinstance(o, Closed)])
        self._callbacks.on_up(broker.packet_bytes_max)

    def _try_later(self) -> None:
        self._backoff_s = min(2.0 * self._backoff_s, float(RECONNECT_S_MAX))
        self._world.after(self._backoff_s, f"again {self.name}", self.connect)

    def _arrived(self, connection: int, topic: str, payload: bytes) -> None:
        if connection != self._connection:
            return
        if self._out.frozen:
            self._out.held.append((topic, payload))
            return
        self._taken()
        self._network.publish(self.name, topic, payload)

    def _taken(self) -> None:
        """The broker has a publication and says so."""
        self.traffic.received_bytes += _PUBACK_BYTES
        waited_s = self._world.now_s - self._under_way[0]
        self._window.taken(waited_s, len(self._under_way))
        self._under_way.popleft()
        self._callbacks.on_ack()

    def deliver(self, topic: str, payload: bytes) -> None:
        """The broker sends this client a publication."""
        size = publish_packet_bytes(topic, len(payload), mqtt5=True)
        leaves_s = self._in.departs_at_s(self._world.now_s, int(size * self.slowed))
        connection = self._connection
        self._world.after(
            leaves_s + self._delay_s - self._world.now_s,
            f"down {self.name} {_mark(payload)}",
            lambda: self._received(connection, topic, payload, size),
        )

    def _received(self, connection: int, topic: str, payload: bytes, size: int) -> None:
        if connection != self._connection or not self.up:
            return  # the broker speaks to somebody who is gone, and has not noticed
        if self._in.frozen:
            self._in.held.append((topic, payload))
            return
        self.traffic.received_bytes += size
        self.traffic.received_packets += 1
        self.traffic.sent_bytes += _PUBACK_BYTES
        self._callbacks.on_message(topic, payload)


def _mark(payload: bytes) -> str:
    """A payload in a trace: what it says enters the digest."""
    return hashlib.sha256(payload).hexdigest()[:12]
