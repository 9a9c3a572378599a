"""An MQTT broker as potluck uses one, as a pure function of what is done to it.

Clean sessions, QoS 1, wills, a packet limit; no retained messages, no sessions that outlive a
connection. Time and loss are the network's (`fleet.world`), not the broker's: what is handed to it
here is handled at once. A test plays the same scripts to this model and to a real Mosquitto.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from wire.link import publish_packet_bytes

Will: TypeAlias = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The broker sends a publication to a client."""

    client: str
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The broker closes a client's connection."""

    client: str


Outcome: TypeAlias = Delivery | Closed


@dataclass(slots=True)
class _Session:
    filters: tuple[str, ...]
    will: Will | None


@dataclass
class BrokerModel:
    """All connections of one broker.

    Args:
        packet_bytes_max: a client that sends more is closed.
    """

    packet_bytes_max: int
    _sessions: dict[str, _Session] = field(default_factory=dict)
    # Who listens to a topic by its very name, and who to patterns: thousands of devices do the one.
    _exact: dict[str, dict[str, None]] = field(default_factory=dict)
    _patterns: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def connected(self) -> frozenset[str]:
        """The clients that are connected."""
        return frozenset(self._sessions)

    def connect(
        self, client: str, filters: tuple[str, ...], will: Will | None = None
    ) -> list[Outcome]:
        """A client connects and subscribes; an older connection of the same name is thrown out.

        MQTT 5.0, sections 3.1.4 and 3.1.2.5: the older one is closed and its will published.
        """
        outcomes: list[Outcome] = []
        if client in self._sessions:
            outcomes = [Closed(client), *self.drop(client)]
        self._sessions[client] = _Session(filters, will)
        for wanted in filters:
            levels = wanted.split("/")
            if "#" in levels or "+" in levels:
                self._patterns.setdefault(client, []).append(levels)
            else:
                self._exact.setdefault(wanted, {})[client] = None
        return outcomes

    def disconnect(self, client: str) -> list[Outcome]:
        """A client says goodbye: its will is forgotten (section 3.14.4)."""
        self._forget(client)
        return []

    def _forget(self, client: str) -> _Session | None:
        session = self._sessions.pop(client, None)
        if session is not None:
            self._patterns.pop(client, None)
            for wanted in session.filters:
                self._exact.get(wanted, {}).pop(client, None)
        return session

    def drop(self, client: str) -> list[Outcome]:
        """A connection is lost: its will is published (section 3.1.2.5)."""
        session = self._forget(client)
        if session is None or session.will is None:
            return []
        return self._fan_out(*session.will)

    def publish(self, client: str, topic: str, payload: bytes) -> list[Outcome]:
        """A client publishes at QoS 1; one that is not connected is not heard."""
        if client not in self._sessions:
            return []
        if publish_packet_bytes(topic, len(payload), mqtt5=True) > self.packet_bytes_max:
            return [Closed(client), *self.drop(client)]
        return self._fan_out(topic, payload)

    def kill(self) -> list[str]:
        """The broker dies: nothing is remembered and no will is published."""
        lost = sorted(self._sessions)
        self._sessions.clear()
        self._exact.clear()
        self._patterns.clear()
        return lost

    def _fan_out(self, topic: str, payload: bytes) -> list[Outcome]:
        listeners = dict(self._exact.get(topic, {}))
        levels = topic.split("/")
        for client, patterns in self._patterns.items():
            if any(_levels_match(pattern, levels) for pattern in patterns):
                listeners[client] = None
        return [Delivery(client, topic, payload) for client in listeners]


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter takes a topic (MQTT 5.0, section 4.7)."""
    return _levels_match(pattern.split("/"), topic.split("/"))


def _levels_match(pattern: list[str], levels: list[str]) -> bool:
    for number, level in enumerate(pattern):
        if level == "#":
            return True
        if number >= len(levels) or level not in ("+", levels[number]):
            return False
    return len(pattern) == len(levels)
