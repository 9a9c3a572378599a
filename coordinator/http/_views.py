"""What the API answers with: frozen structs, from which its OpenAPI document is made.

Times are seconds since 1970, UTC; ids and digests are hexadecimal.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from coordinator.config import FederationConfig

T = TypeVar("T")

PAGE_MAX = 500
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+\Z")]
Number = Annotated[int, Meta(ge=0, le=2**53)]
Limit = Annotated[int, Meta(ge=1, le=PAGE_MAX)]


class Problem(Struct, frozen=True):
    """Why a request was not served: a stable word, and a sentence."""

    error: str
    detail: str


class Page(Struct, Generic[T], frozen=True):
    """Some of a list. `next` is the `after` of the page behind it, null at the end."""

    items: list[T]
    next: str | None


# -- what can be asked for -----------------------------------------------------------------------


class ByNumber(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a page begins, and how long it may be."""

    after: Number | None = None
    limit: Limit = 100


class ByName(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a page begins, and how long it may be."""

    after: Annotated[str, Meta(max_length=200)] | None = None
    limit: Limit = 100


class WhichUpdates(Struct, frozen=True, forbid_unknown_fields=True):
    """Which lines of the ledger, and how many."""

    after: Number | None = None
    limit: Limit = 100
    round: Number | None = None
    device: Name | None = None


class WhichAlias(Struct, frozen=True, forbid_unknown_fields=True):
    """The alias that is to move."""

    alias: Literal["stable", "candidate"] = "stable"


class Why(Struct, frozen=True, forbid_unknown_fields=True):
    """What the ledger and the device are told."""

    reason: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")] = "operator"


# -- what there is -------------------------------------------------------------------------------


class Health(Struct, frozen=True):
    """Whether the process does its work."""

    status: Literal["ok", "failing"]
    reasons: list[str]


class OpenRound(Struct, frozen=True):
    """The round that is under way."""

    number: int
    phase: str
    opened_at: float
    deadline_at: float
    invited: int
    cohort: int
    needed: int
    accepted: int
    stored: int


class State(Struct, frozen=True):
    """How the coordinator is at `at`."""

    at: float
    link_up: bool
    paused: bool
    finished: bool
    round: OpenRound | None
    last_round: int
    version: int | None
    digest: str | None
    aliases: dict[str, int]
    devices: int
    revoked: int
    leases: int


class Federation(Struct, frozen=True):
    """One federation: what its file says, and how it is."""

    name: str
    public_key: str
    broker: str
    potluck: str
    config: FederationConfig
    state: State


class Round(Struct, frozen=True):
    """One round. `not_counted` and `declined` are reason to count."""

    number: int
    status: str
    opened_at: float
    deadline_at: float
    closed_at: float | None
    reason: str | None
    base_version: int
    version: int | None
    codec: str
    cohort: int
    needed: int
    invited: int
    counted: int
    open: int
    not_counted: dict[str, int]
    declined: dict[str, int]
    metrics: dict[str, float]
    sent_bytes: int | None
    received_bytes: int | None


class RoundDetail(Struct, frozen=True):
    """One round, with the devices that were invited and why some said no."""

    round: Round
    invited: list[str]
    declined: dict[str, str]


class Update(Struct, frozen=True):
    """One line of the ledger; `settled` is null while it is open."""

    update_id: str
    device: str
    round: int
    base_version: int
    num_examples: int
    weight: int
    bytes: int
    digest: str
    receipted_at: float | None
    settled: Literal["counted", "not_counted"] | None
    settled_at: float | None
    reason: str | None


class Device(Struct, frozen=True):
    """One device.

    `check_in` is the number of its last check-in, 0 before the first, and `boot` the boot that it
    was of. `lease_until` is until when it may be invited, null when it may not.
    """

    device: str
    device_class: str
    enrolled_at: float
    revoked: str | None
    check_in: int
    boot: int
    lease_until: float | None
    incidents: dict[str, int]


class Version(Struct, frozen=True):
    """One version. `kept` says whether an alias can be pointed at it.

    `vetoes` is reason to count: devices whose own check was against it when it was released.
    """

    version: int
    round: int
    digest: str
    parent: int | None
    created_at: float
    counted: int
    weight: int
    bytes: int
    delta_bytes: int
    metrics: dict[str, float]
    aliases: list[str]
    kept: bool
    vetoes: dict[str, int]


class Release(Struct, frozen=True):
    """One move of an alias."""

    sequence: int
    alias: str
    version: int
    digest: str
    released_at: float
    actor: str
    action: Literal["promote", "rollback"]
    from_version: int | None


class Incident(Struct, frozen=True):
    """How often a device ("-" for strangers) caused an error."""

    device: str
    reason: str
    count: int
    last_detail: str


class Audit(Struct, frozen=True):
    """One line of the audit trail."""

    line: int
    fields: dict[str, Any]


class Participation(Struct, frozen=True):
    """How much a class of devices took part; shares are of all classes together."""

    device_class: str
    devices: int
    took_part: int
    counted: int
    not_counted: int
    weight: int
    share_of_devices: float
    share_of_counted: float


class Classes(Struct, frozen=True):
    """Every class."""

    classes: list[Participation]


class Moved(Struct, frozen=True):
    """What an alias means now, and whether that is new."""

    release: Release
    changed: bool


class Done(Struct, frozen=True):
    """Whether anything had to be changed."""

    changed: bool
