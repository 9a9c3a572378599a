"""What came of one seed, and what the worlds that the nemesis plays have in common."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from fleet.checkers import Evidence, ViolationError
from fleet.faults import Event
from fleet.network import Weather

if TYPE_CHECKING:
    from fleet.virtual import VirtualFleet

Mode = Literal["safety", "liveness", "async_safety", "async_liveness", "transfers", "week"]
# Those that are over in minutes of virtual time: `week` is played beside them.
MODES: Final[tuple[Mode, ...]] = (
    "safety",
    "liveness",
    "async_safety",
    "async_liveness",
    "transfers",
)
ALL_MODES: Final[tuple[Mode, ...]] = (*MODES, "week")


class Trial(Struct, frozen=True):
    """One world, from its seed to its end.

    `effects` is how many writes and messages there were, the gateway's first. `violation` is None,
    or the promise that was broken and how.
    """

    seed: int
    mode: Mode
    devices: int
    rounds: int
    events: tuple[Event, ...]
    trace_digest: str
    virtual_s: float
    happened: int
    effects: tuple[int, ...]
    violation: str | None = None
    promise: str | None = None


def trial_of(
    fleet: "VirtualFleet",
    mode: Mode,
    events: Sequence[Event],
    violation: ViolationError | None,
) -> Trial:
    """What came of a world that is over."""
    return Trial(
        seed=fleet.run.seed,
        mode=mode,
        devices=fleet.run.count,
        rounds=fleet.run.config.rounds.count,
        events=tuple(events),
        trace_digest=fleet.world.trace_digest,
        virtual_s=fleet.world.now_s,
        happened=fleet.world.events,
        effects=tuple(host.fuse.effects for host in (fleet.gateway, *fleet.hosts)),
        violation=None if violation is None else str(violation),
        promise=None if violation is None else violation.promise,
    )


def hold(promises: Sequence[Callable[[Evidence], None]], evidence: Evidence) -> bool:
    """Whether all of them do."""
    try:
        for promise in promises:
            promise(evidence)
    except ViolationError:
        return False
    return True


def heal(fleet: "VirtualFleet") -> None:
    """Everything works again; clocks are right again."""
    fleet.network.weather = Weather()
    for host in (fleet.gateway, *fleet.hosts):
        host.free_disk()
        host.fuse.blows_at = None
        if host.wall.stepped_s:
            host.step_clock(-host.wall.stepped_s)
    for device in fleet.hosts:
        device.plug_in()
        device.opt_in()
