"""Where a message travels: at most seven levels, the device's own name in the middle.

    potluck/1/<federation>/<device>/up      device -> coordinator
    potluck/1/<federation>/<device>/down    coordinator -> device
    potluck/1/enrol/<coordinator>/<token>/up|down

A broker's access list needs one line: `pattern readwrite potluck/1/+/%u/#`. A device's id is 16
hex characters, so that it never reads "enrol".
"""

import re
from dataclasses import dataclass
from typing import Literal

from wire import limits
from wire.errors import RemoteProtocolError, UnknownSenderError

_ROOT = f"potluck/{limits.PROTOCOL_MAJOR}"
_FEDERATION = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_DEVICE = re.compile(r"[0-9a-f]{16}\Z")
_LEVELS_MIN = 5

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Address:
    """What a topic says: `scope` is a federation's name, or "enrol/<coordinator>"."""

    scope: str
    device: str
    direction: Direction

    @property
    def topic(self) -> str:
        """The MQTT topic."""
        return f"{_ROOT}/{self.scope}/{self.device}/{self.direction}"


def federation_name_is_valid(name: str) -> bool:
    """Lower-case letters, digits, dot, dash, underscore; 1 to 64 characters; not "enrol"."""
    return bool(_FEDERATION.match(name)) and name != "enrol"


def _scope_is_valid(scope: str) -> bool:
    """A federation's name, or "enrol/" and a coordinator's id."""
    kind, _, coordinator = scope.partition("/")
    if kind == "enrol":
        return bool(_DEVICE.match(coordinator))
    return federation_name_is_valid(scope)


def enrolment_scope(coordinator: str) -> str:
    """The scope under which tokens of one coordinator are redeemed."""
    return f"enrol/{coordinator}"


def uplink_filter(scope: str) -> str:
    """The subscription by which a coordinator hears every device of a scope."""
    return f"{_ROOT}/{scope}/+/up"


def parse(topic: str) -> Address:
    """Read a topic from the network.

    Raises:
        UnknownSenderError: the device level is not a device id.
        RemoteProtocolError: the topic is not one of potluck's.
    """
    if len(topic) > limits.TOPIC_BYTES_MAX:
        raise RemoteProtocolError(f"topic of {len(topic)} characters")
    levels = topic.split("/")
    if not _LEVELS_MIN <= len(levels) <= limits.TOPIC_LEVELS_MAX or "/".join(levels[:2]) != _ROOT:
        raise RemoteProtocolError(f"not a topic of this protocol: {topic[:64]!r}")
    scope, (device, direction) = "/".join(levels[2:-2]), levels[-2:]
    if not _scope_is_valid(scope) or direction not in ("up", "down"):
        raise RemoteProtocolError(f"not a topic of this protocol: {topic[:64]!r}")
    if not _DEVICE.match(device):
        raise UnknownSenderError(f"{device[:64]!r} is not a device id")
    return Address(scope=scope, device=device, direction="up" if direction == "up" else "down")
