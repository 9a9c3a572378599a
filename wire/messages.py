"""Every message of the protocol: frozen, bounded, MessagePack arrays in the order of the fields.

The frame's `kind` byte is the union's tag. Evolution within a major version: fields are only
appended, with a default; a field is never renamed in place, reordered or reused. Kinds that are
reserved have a number and no struct: they are refused until they do.

Times on the wire are durations, never clock readings: devices' clocks are wrong.
"""

from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, TypeAlias

import msgspec
from msgspec import Meta

from wire import limits

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Text: TypeAlias = Annotated[str, Meta(max_length=limits.REASON_CHARS_MAX)]
Reason: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
DigestOrNone: TypeAlias = Annotated[bytes, Meta(max_length=32)]
Id: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Number: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]
Bytes: TypeAlias = Annotated[int, Meta(ge=1, le=limits.TRANSFER_BYTES_MAX)]
Metrics: TypeAlias = Annotated[dict[Name, float], Meta(max_length=limits.METRICS_MAX)]


class Body(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""

    KIND: ClassVar[int] = 0
    UPLINK: ClassVar[bool | None] = None


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What a device is asked to do with its data: the hyper-parameters of local training.

    `seed` is public and differs by round; a trainer derives its shuffling from it. `clip_norm` is
    the L2 bound of the whole delta, 0 for none. `proximal_mu` is FedProx's mu (Li et al. 2020,
    eq. 2), 0 for plain FedAvg.
    """

    local_epochs: Annotated[int, Meta(ge=1, le=limits.EPOCHS_MAX)] = 1
    batch: Annotated[int, Meta(ge=1, le=limits.BATCH_MAX)] = 10
    learning_rate: Annotated[float, Meta(gt=0.0, le=1e6)] = 0.1
    seed: Count = 0
    clip_norm: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0


class EnrolRequest(Body, frozen=True, array_like=True):
    """A device presents a one-time token and its own public key. Signed with that key."""

    KIND = 1
    UPLINK = True
    public_key: Digest
    proof: Digest
    device_class: Name = "unknown"


class Available(Body, frozen=True, array_like=True):
    """A device checks in: from now on, for `window_s`, it may be invited.

    `check_in` grows with every message of the kind, over reboots too; the coordinator ignores what
    is not newer, and answers with it. `held_version` is the model that the device can apply deltas
    to, `released_version` the one that its app uses; -1 is none. Mains counts as a full battery.
    `stays_s` is how long the device expects to meet its owner's conditions, 0 when it does not
    know; `window_s` is no longer than that. `description_digest` is that of the description that
    the device has its model from, empty when its task has a model of its own.
    """

    KIND = 2
    UPLINK = True
    check_in: Number
    window_s: Annotated[float, Meta(ge=0.0, le=limits.LEASE_S_MAX)]
    held_version: Annotated[int, Meta(ge=-1, le=2**53)]
    released_version: Annotated[int, Meta(ge=-1, le=2**53)]
    schema_digest: Digest
    device_class: Name = "unknown"
    battery_fraction: Fraction = 1.0
    charging: bool = True
    metered: bool = False
    codecs: Annotated[tuple[Name, ...], Meta(max_length=limits.CODECS_MAX)] = ()
    stays_s: Annotated[float, Meta(ge=0.0, le=limits.LEASE_S_MAX)] = 0.0
    description_digest: DigestOrNone = b""


class Declined(Body, frozen=True, array_like=True):
    """A device cannot take part now: an invitation turned down, or its check-in withdrawn.

    `round` is 0 when no invitation is meant.
    """

    KIND = 3
    UPLINK = True
    check_in: Number
    round: Count
    reason: Reason
    detail: Text = ""


class FetchRequest(Body, frozen=True, array_like=True):
    """A device asks for a model, in chunks of at most `chunk_bytes_max`.

    `received` is a bitmap of the chunks of `transfer_id` that it has.
    """

    KIND = 4
    UPLINK = True
    want_version: Count
    have_version: Annotated[int, Meta(ge=-1, le=2**53)]
    chunk_bytes_max: Bytes
    transfer_id: Annotated[bytes, Meta(max_length=16)] = b""
    received: Annotated[bytes, Meta(max_length=limits.CHUNKS_PER_TRANSFER_MAX // 8)] = b""


class UpdateOffer(Body, frozen=True, array_like=True):
    """A sealed update, to be sent in chunks of `chunk_bytes` (the last one shorter).

    With `chunks_follow` all chunks come right behind it; without, it asks for an `UploadStatus`, or
    for whatever else the coordinator knows of the update.
    """

    KIND = 5
    UPLINK = True
    update_id: Id
    round: Number
    base_version: Count
    payload_bytes: Bytes
    payload_digest: Digest
    chunk_bytes: Bytes
    num_examples: Number
    chunks_follow: bool
    metrics: Metrics = {}


class Chunk(Body, frozen=True, array_like=True):
    """A piece of a transfer, either way. An update's transfer id is its update id."""

    KIND = 6
    UPLINK = None
    transfer_id: Id
    index: Annotated[int, Meta(ge=0, lt=limits.CHUNKS_PER_TRANSFER_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.TRANSFER_BYTES_MAX)]


class Failed(Body, frozen=True, array_like=True):
    """A device took an invitation up and could not finish it: a typed reason, never silence."""

    KIND = 7
    UPLINK = True
    round: Number
    reason: Reason
    detail: Text = ""


class Gone(Body, frozen=True, array_like=True):
    """The last will, signed when the device connects: it has lost its link. Advisory.

    `check_in` is the last one before that connection: what came after it was said on this link.
    """

    KIND = 8
    UPLINK = True
    check_in: Count


class Leave(Body, frozen=True, array_like=True):
    """The owner takes the device out; the coordinator revokes it."""

    KIND = 9
    UPLINK = True
    reason: Reason = "owner_left"


class DescriptionRequest(Body, frozen=True, array_like=True):
    """A device asks for the description of the model, in chunks of at most `chunk_bytes_max`.

    It is ready for `bytes_max` bytes of chunks now, and asks again for what is left. `have_digest`
    is that of the description that it has: if it is still the one, no chunk follows. `received` is
    a bitmap of the chunks of `transfer_id` that are here. Since 1.1.
    """

    KIND = 10
    UPLINK = True
    chunk_bytes_max: Bytes
    bytes_max: Bytes
    have_digest: DigestOrNone = b""
    transfer_id: Annotated[bytes, Meta(max_length=16)] = b""
    received: Annotated[bytes, Meta(max_length=limits.CHUNKS_PER_TRANSFER_MAX // 8)] = b""


class EvaluationReport(Body, frozen=True, array_like=True):
    """What a device measured of a version on its hold-out, as it was asked to. Since 1.1."""

    KIND = 32
    UPLINK = True
    round: Number
    version: Count
    loss: float
    num_examples: Number
    metrics: Metrics = {}


class ReleaseVeto(Body, frozen=True, array_like=True):
    """A device's own check is against a released version: its app goes on with another. Since 1.1.

    `metrics` are figures behind it: `loss_candidate`, `loss_current`, `num_examples`.
    """

    KIND = 36
    UPLINK = True
    version: Count
    reason: Reason
    detail: Text = ""
    metrics: Metrics = {}


class Enrolled(Body, frozen=True, array_like=True):
    """The token is redeemed: the device's name, its federation, and its X.509 certificate (PEM)."""

    KIND = 64
    UPLINK = False
    device: Name
    federation: Name
    certificate: Annotated[bytes, Meta(max_length=8192)]


class Refused(Body, frozen=True, array_like=True):
    """A message of `kind` was not accepted. `reason` is an error's stable word."""

    KIND = 65
    UPLINK = False
    kind: Annotated[int, Meta(ge=0, le=255)]
    reason: Reason
    detail: Text = ""


class Invite(Body, frozen=True, array_like=True):
    """The answer to check-in `check_in`: train on `base_version`, deliver within `deadline_s`.

    The update's chunks have at most `chunk_bytes_max` bytes: what the coordinator's link lets in.
    """

    KIND = 66
    UPLINK = False
    check_in: Number
    round: Number
    base_version: Count
    base_digest: Digest
    plan: Plan
    codec: Name
    deadline_s: Annotated[float, Meta(gt=0.0, le=limits.DEADLINE_S_MAX)]
    chunk_bytes_max: Bytes


class ComeBackAt(Body, frozen=True, array_like=True):
    """The other answer to a check-in: not now, speak again after `after_s`."""

    KIND = 67
    UPLINK = False
    check_in: Number
    after_s: Annotated[float, Meta(ge=0.0, le=limits.COME_BACK_S_MAX)]
    reason: Reason = "not_needed"


class ModelOffer(Body, frozen=True, array_like=True):
    """What follows in chunks: a bundle that turns `from_version` (-1: nothing) into `version`."""

    KIND = 68
    UPLINK = False
    transfer_id: Id
    version: Count
    from_version: Annotated[int, Meta(ge=-1, le=2**53)]
    payload_bytes: Bytes
    payload_digest: Digest
    chunk_bytes: Bytes
    model_digest: Digest


class UploadStatus(Body, frozen=True, array_like=True):
    """Which chunks of an update the coordinator holds: bit i of byte i // 8, lowest bit first."""

    KIND = 69
    UPLINK = False
    update_id: Id
    received: Annotated[bytes, Meta(max_length=limits.CHUNKS_PER_TRANSFER_MAX // 8)]


class Receipt(Body, frozen=True, array_like=True):
    """Stored durably; will be decided exactly once."""

    KIND = 70
    UPLINK = False
    update_id: Id


class Settled(Body, frozen=True, array_like=True):
    """Decided: the device may forget the update. `reason` is "counted" when it was."""

    KIND = 71
    UPLINK = False
    update_id: Id
    counted: bool
    reason: Reason


class Release(Body, frozen=True, array_like=True):
    """The model that apps are to use: alias "stable" or "candidate" now means `version`."""

    KIND = 72
    UPLINK = False
    version: Count
    model_digest: Digest
    alias: Name = "stable"


class Revoked(Body, frozen=True, array_like=True):
    """The device is no longer part of the federation; it stops and says so to its app."""

    KIND = 73
    UPLINK = False
    reason: Reason


class DescriptionOffer(Body, frozen=True, array_like=True):
    """What follows in chunks: the description of the model. The answer to a request. Since 1.1."""

    KIND = 74
    UPLINK = False
    transfer_id: Id
    payload_bytes: Bytes
    payload_digest: Digest
    chunk_bytes: Bytes


class EvaluateInvite(Body, frozen=True, array_like=True):
    """An answer to check-in `check_in`: measure `version` on the hold-out, train nothing.

    `round` is the one that made the version; an `EvaluationReport` or a `Failed` names it. A
    coordinator sends it to devices alone whose frames are of minor version 1 or later.
    """

    KIND = 96
    UPLINK = False
    check_in: Number
    round: Number
    version: Count
    model_digest: Digest
    plan: Plan
    deadline_s: Annotated[float, Meta(gt=0.0, le=limits.DEADLINE_S_MAX)]


Message: TypeAlias = (
    EnrolRequest
    | Available
    | Declined
    | FetchRequest
    | UpdateOffer
    | Chunk
    | Failed
    | Gone
    | Leave
    | DescriptionRequest
    | EvaluationReport
    | ReleaseVeto
    | Enrolled
    | Refused
    | Invite
    | ComeBackAt
    | ModelOffer
    | UploadStatus
    | Receipt
    | Settled
    | Release
    | Revoked
    | DescriptionOffer
    | EvaluateInvite
)

MESSAGES: Final = MappingProxyType(
    {
        message.KIND: message
        for message in (
            EnrolRequest,
            Available,
            Declined,
            FetchRequest,
            UpdateOffer,
            Chunk,
            Failed,
            Gone,
            Leave,
            DescriptionRequest,
            EvaluationReport,
            ReleaseVeto,
            Enrolled,
            Refused,
            Invite,
            ComeBackAt,
            ModelOffer,
            UploadStatus,
            Receipt,
            Settled,
            Release,
            Revoked,
            DescriptionOffer,
            EvaluateInvite,
        )
    }
)

# Numbers that later versions will give a struct; nothing else may take them.
RESERVED_KINDS: Final = MappingProxyType(
    {
        33: "KeyAdvertisement",
        34: "KeyShares",
        35: "UnmaskShares",
        97: "KeyingInvite",
        98: "KeyDirectory",
        99: "UnmaskRequest",
    }
)


def is_finite(message: Any) -> bool:
    """Whether no float field, at any depth, is NaN or infinite (MessagePack carries both)."""
    if isinstance(message, float):
        return message - message == 0.0
    if isinstance(message, msgspec.Struct):
        return all(is_finite(getattr(message, name)) for name in message.__struct_fields__)
    if isinstance(message, dict):
        return all(is_finite(value) for value in message.values())
    if isinstance(message, tuple):
        return all(is_finite(value) for value in message)
    return True
