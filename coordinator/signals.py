"""What a round hears and what it asks for: its own events, effects and records.

The device's half is `edge_sdk.signals`; events and effects that both sides know are in
`wire.effects` and `wire.messages`.
"""

from dataclasses import dataclass

import msgspec

from wire import Effect, Plan

# -- what the driver persists --------------------------------------------------------------------


class RoundOpened(msgspec.Struct, frozen=True):
    """A round exists, with everything that a restart needs to go on with it.

    `invited` maps device to the check-in that its invitation answers, in the order of selection:
    who was asked least comes first. `deadline_at_s` is unix time. `there` is how many eligible
    devices there were of each class, as they were enrolled.
    """

    round: int
    base_version: int
    base_digest: bytes
    plan: Plan
    codec: str
    cohort: int
    needed: int
    invited: dict[str, int]
    opened_at_s: float
    deadline_at_s: float
    chunk_bytes_max: int
    weight_cap: int
    there: dict[str, int] = {}


class UpdateStored(msgspec.Struct, frozen=True):
    """An update's payload and its line in the ledger, stored together; receipted from here on."""

    update_id: bytes
    device: str
    round: int
    base_version: int
    num_examples: int
    weight: int
    payload_bytes: int
    payload_digest: bytes
    metrics: dict[str, float]
    receipted_at_s: float


class UpdateSettled(msgspec.Struct, frozen=True):
    """One update's decision, made before its round closed (it is not counted)."""

    update_id: bytes
    round: int
    reason: str
    settled_at_s: float


class RoundAbandoned(msgspec.Struct, frozen=True):
    """The round ended without a model; what was accepted is settled as not counted."""

    round: int
    accepted: tuple[bytes, ...]
    reason: str
    closed_at_s: float


# -- effects that only a coordinator knows -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Validate(Effect):
    """Decode and check a stored update, and add it to the sum; answer `Accepted` or `Rejected`."""

    update_id: bytes
    device: str
    weight: int


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """Close the round in one transaction: model version, settlements, round; answer `Committed`."""

    round: int
    base_version: int
    accepted: tuple[bytes, ...]


# -- events that only a coordinator knows --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Begin: the plan is made, the cohort is chosen."""

    opened: RoundOpened


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after a restart: the stored round, and what was receipted but not settled.

    `heard` are the devices that have sent something or have said that they cannot.
    """

    opened: RoundOpened
    stored: tuple[UpdateStored, ...]
    heard: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """An update is complete and has the promised digest; the driver holds its payload."""

    update: UpdateStored


@dataclass(frozen=True, slots=True)
class Accepted:
    """The update is valid and in the sum."""

    update_id: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """The update is not valid; nothing of it is in the sum."""

    update_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class InviteeLost:
    """An invited device declined, failed or left: nothing more will come from it."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceAsks:
    """An invited device checks in again, having lost its invitation over a reboot or a bad link."""

    device: str
    check_in: int


@dataclass(frozen=True, slots=True)
class ClockSet:
    """Somebody has set the gateway's clock; the driver has moved the timers."""

    by_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """The transaction is on disk: this is the new version."""

    version: int
    model_digest: bytes
