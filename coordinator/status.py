"""How a coordinator is right now, as one frozen value that another thread may keep and read."""

from dataclasses import dataclass

from coordinator.leases import Lease
from coordinator.round import UpdateState
from coordinator.service import Coordinator


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that is under way; times are unix seconds."""

    round: int
    phase: str
    opened_at_s: float
    deadline_at_s: float
    invited: int
    cohort: int
    needed: int
    accepted: int
    stored: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the store does not know: it is in memory, and gone with the process.

    `at_s` is when it was taken, unix seconds; `steady_s` the same by the monotonic clock.
    """

    at_s: float
    steady_s: float
    link_up: bool
    paused: bool
    finished: bool
    round: OpenRound | None
    leases: dict[str, Lease]
    partial_updates: int
    sent_bytes: int
    received_bytes: int


def take_status(
    coordinator: Coordinator, *, link_up: bool, now_s: float, steady_s: float
) -> Status:
    """Look at everything once; on the coordinator's own thread."""
    return Status(
        at_s=now_s,
        steady_s=steady_s,
        link_up=link_up,
        paused=coordinator.rounds.opening.paused,
        finished=coordinator.finished,
        round=_open_round(coordinator),
        leases=coordinator.leases.running(),
        partial_updates=coordinator.partials,
        sent_bytes=coordinator.sent_bytes,
        received_bytes=coordinator.received_bytes,
    )


def _open_round(coordinator: Coordinator) -> OpenRound | None:
    state = coordinator.rounds.round
    opened = state.opened
    if opened is None or not coordinator.rounds.is_open:
        return None
    return OpenRound(
        round=opened.round,
        phase=state.phase.value,
        opened_at_s=opened.opened_at_s,
        deadline_at_s=opened.deadline_at_s,
        invited=len(opened.invited),
        cohort=opened.cohort,
        needed=opened.needed,
        accepted=sum(became is UpdateState.ACCEPTED for became in state.updates.values()),
        stored=len(state.updates),
    )
