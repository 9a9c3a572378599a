"""What a device's session hears and what it asks for: its own events, effects and records.

They stand beside the machine and not in it, so that a driver can be read without the machine and
the machine without a driver. Events and effects that both sides know are in `wire.effects` and
`wire.messages`.
"""

from typing import Final

import msgspec

from wire import Effect, Plan

# How long a check-in promises to be there, where the owner says nothing else.
LEASE_S: Final = 120.0

# -- what the driver persists --------------------------------------------------------------------


class SealedUpdate(msgspec.Struct, frozen=True):
    """An update that is done: the journal keeps it, with its payload, until it is settled."""

    update_id: bytes
    round: int
    base_version: int
    payload_bytes: int
    payload_digest: bytes
    num_examples: int
    chunk_bytes_max: int
    metrics: dict[str, float] = {}


class ForgetUpdate(msgspec.Struct, frozen=True):
    """An update that is settled: the journal keeps a line about it and drops the payload."""

    update_id: bytes
    round: int
    counted: bool
    reason: str


class VetoedRelease(msgspec.Struct, frozen=True):
    """A release that this device has found unfit: the journal keeps the last one.

    `kept_version` is what its app goes on with, `reason` a stable word, `metrics` what was measured
    (`loss_candidate`, `loss_current`, `num_examples`).
    """

    version: int
    model_digest: bytes
    kept_version: int
    reason: str
    detail: str = ""
    metrics: dict[str, float] = {}


class Spent(msgspec.Struct, frozen=True):
    """What taking part has cost: MQTT bytes both ways, joules beyond idling, seconds of work."""

    traffic_bytes: int = 0
    joules: float = 0.0
    training_s: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        """Both."""
        return Spent(
            self.traffic_bytes + other.traffic_bytes,
            self.joules + other.joules,
            self.training_s + other.training_s,
        )

    def since(self, earlier: "Spent") -> "Spent":
        """What has come since `earlier`, of two sums that only grow."""
        return Spent(
            self.traffic_bytes - earlier.traffic_bytes,
            max(self.joules - earlier.joules, 0.0),
            max(self.training_s - earlier.training_s, 0.0),
        )


NOTHING: Final = Spent()

# -- effects that only a device knows ------------------------------------------------------------


class LocateBase(Effect, msgspec.Struct, frozen=True):
    """Look for the round's base model; answer `BaseHeld` or `BaseMissing`."""

    version: int
    digest: bytes


class Fetch(Effect, msgspec.Struct, frozen=True):
    """Ask the coordinator for a model, saying what is held; answer `BaseReady` or `BaseFailed`."""

    version: int
    digest: bytes


class Train(Effect, msgspec.Struct, frozen=True):
    """Train, clip, encode; answer `Trained` or `TrainingFailed`."""

    round: int
    base_version: int
    plan: Plan
    codec: str
    update_id: bytes
    chunk_bytes_max: int


class Evaluate(Effect, msgspec.Struct, frozen=True):
    """Measure a version on the hold-out; answer `Evaluated` or `TrainingFailed`."""

    round: int
    version: int
    plan: Plan


class StopWork(Effect, msgspec.Struct, frozen=True):
    """Stop the work or the fetching at the next batch boundary; the result is not wanted."""

    reason: str


class SendChunks(Effect, msgspec.Struct, frozen=True):
    """Send the chunks of a sealed update that the bitmap `received` lacks."""

    update_id: bytes
    received: bytes
    chunk_bytes: int


class Adopt(Effect, msgspec.Struct, frozen=True):
    """Make a released model the one that the app sees; fetch it and have it checked first.

    The driver answers `Adopted` when it is done, `Vetoed` when the device's own check is against
    it, and with nothing if it cannot be done now: the next check-in says which version is in use,
    and the coordinator releases again.
    """

    version: int
    digest: bytes
    alias: str


# -- events that only a device knows -------------------------------------------------------------


class EnrolmentDone(msgspec.Struct, frozen=True):
    """The coordinator has taken the token and given this name."""

    device: str
    federation: str


class LinkUp(msgspec.Struct, frozen=True):
    """The broker is there, and takes chunks of this size."""

    chunk_bytes: int


class LinkDown(msgspec.Struct, frozen=True):
    """The broker is gone."""


class GateOpened(msgspec.Struct, frozen=True):
    """Conditions allow work, for `window_s` as far as the device can tell.

    A check-in promises no more than `check_in_s` of it, and is then repeated.
    """

    window_s: float
    battery_fraction: float = 1.0
    charging: bool = True
    metered: bool = False
    check_in_s: float = LEASE_S


class GateClosed(msgspec.Struct, frozen=True):
    """Conditions forbid work; `reason` is a stable word."""

    reason: str


class TurnDown(msgspec.Struct, frozen=True):
    """What is left of the day's budgets does not do for this invitation; `reason` says of which."""

    check_in: int
    round: int
    reason: str


class BaseHeld(msgspec.Struct, frozen=True):
    """The base model is here and has the right digest."""

    version: int


class BaseMissing(msgspec.Struct, frozen=True):
    """The base model is not here."""

    version: int


class BaseReady(msgspec.Struct, frozen=True):
    """A fetched model is assembled, checked and stored."""

    version: int


class BaseFailed(msgspec.Struct, frozen=True):
    """The fetched bytes were not the promised model."""

    version: int
    reason: str


class Trained(msgspec.Struct, frozen=True):
    """Training is over and encoded; the driver holds the payload until it is persisted."""

    sealed: SealedUpdate


class Evaluated(msgspec.Struct, frozen=True):
    """A version is measured: mean loss over the hold-out, and more."""

    round: int
    version: int
    loss: float
    num_examples: int
    metrics: dict[str, float]


class TrainingFailed(msgspec.Struct, frozen=True):
    """The trainer raised, hung, or returned what cannot be sent."""

    round: int
    reason: str
    detail: str = ""


class Adopted(msgspec.Struct, frozen=True):
    """The app now sees this version."""

    version: int


class Vetoed(msgspec.Struct, frozen=True):
    """The device's own check is against a release; the app goes on with what it has."""

    version: int
    digest: bytes
    reason: str
    detail: str
    metrics: dict[str, float]
