"""What a round hears and what it asks for: its own events, effects and records.

The device's half is `edge_sdk.signals`; events and effects that both sides know are in
`wire.effects` and `wire.messages`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from wire import Effect, Plan

# -- what the driver persists --------------------------------------------------------------------


class AggregationPlan(msgspec.Struct, frozen=True):
    """How a round's updates become a version: with their payloads, all that its bits follow from.

    The defaults are what rounds did that were written before there was a choice.

    `strategy` and `robust` are as in the file, and so are the numbers, with what each strategy uses
    by itself filled in. `weight_ratio_max` is how many times the cohort's median weight one update
    may weigh, 0 for no such bound.
    """

    strategy: str = "fedavg"
    robust: str = "none"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0
    weight_ratio_max: float = 0.0
    attackers_max: float = 0.0
    clip_quantile: float = 0.5


class RoundOpened(msgspec.Struct, frozen=True):
    """A round exists, with everything that a restart needs to go on with it.

    `invited` maps device to the check-in that its invitation answers, in the order of selection:
    who was asked least comes first. `deadline_at_s` is unix time. `there` is how many eligible
    devices there were of each class, as they were enrolled.

    In mode "async" the round is a buffer: `cohort` is its size, `invited` grows while it is open
    (`RoundInvited`), at most `concurrency` devices work at once, and an update whose base is more
    than `staleness_max` versions old is not taken.
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
    aggregation: AggregationPlan = AggregationPlan()
    mode: str = "sync"
    concurrency: int = 0
    staleness_max: int = 0
    there: dict[str, int] = {}


class RoundInvited(msgspec.Struct, frozen=True):
    """More devices are invited to an open buffer, device -> check-in; times are unix time."""

    round: int
    invited: dict[str, int]
    invited_at_s: float
    deadline_at_s: float


class FlightEnded(msgspec.Struct, frozen=True):
    """An invited device has said that nothing will come of its invitation to a round."""

    round: int
    device: str
    reason: str


class UpdateStored(msgspec.Struct, frozen=True):
    """An update's payload and its line in the ledger, stored together; receipted from here on.

    `round` is the one that the device was invited to, `collected_in` the one that was open when the
    update came, 0 for the same.
    """

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
    collected_in: int = 0


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
    """Decode and check a stored update, and add it to the sum; answer `Accepted` or `Rejected`.

    `staleness` is how many versions the model has moved on since the update's base.
    """

    update_id: bytes
    device: str
    weight: int
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """Close the round in one transaction: model version, settlements, round; answer `Committed`."""

    round: int
    base_version: int
    accepted: tuple[bytes, ...]


# -- events that only a coordinator knows --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flight:
    """A device that is at work for a round, until it delivers, gives up, or `until_s` passes."""

    round: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Open:
    """Begin: the plan is made, the cohort is chosen.

    `flights` are the devices that are still at work for earlier rounds, by name.
    """

    opened: RoundOpened
    flights: Mapping[str, Flight] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chosen:
    """These devices may be invited to an open buffer, in this order: device -> check-in."""

    check_ins: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after a restart: the stored round, and what was receipted but not settled.

    `heard` are the devices that have sent something or have said that they cannot; `flights` those
    that are at work for a buffer.
    """

    opened: RoundOpened
    stored: tuple[UpdateStored, ...]
    heard: frozenset[str] = frozenset()
    flights: Mapping[str, Flight] = field(default_factory=dict)


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
