"""What apps of a world say of releases, and somebody who releases in the middle of a run.

Every check answers the same for the same model, as one that measures on a hold-out does: else a
device that lost its disk could not be told from one that changed its mind.
"""

import contextlib
from typing import TYPE_CHECKING, Final

from coordinator.registry import RegistryError
from coordinator.store import DiskFullError
from edge_sdk import Model, ReleaseCheck, no_worse_than
from fleet.world import World

if TYPE_CHECKING:
    from fleet.virtual import VirtualFleet

_SEEDS: Final = 3 * 10**12
_SHARE: Final = 0.4
_PROMOTED_AT_S: Final = (45.0, 120.0, 190.0)


def _refuses(_candidate: Model, _current: Model) -> str:
    return "not on this device"


def _refuses_odd_ones(candidate: Model, _current: Model) -> bool:
    return candidate.version % 2 == 0


def _raises(candidate: Model, _current: Model) -> None:
    raise ValueError(f"what is version {candidate.version}?")


_CHECKS: Final[tuple[ReleaseCheck, ...]] = (
    no_worse_than(0.0),
    no_worse_than(1e6),
    _refuses,
    _refuses_odd_ones,
    _raises,
)


def checks(seed: int, devices: int) -> tuple[ReleaseCheck | None, ...]:
    """The check of each device of a seed; None for most."""
    chance = World(_SEEDS + seed)
    return tuple(
        None if chance.uniform() > _SHARE else _CHECKS[chance.below(len(_CHECKS))]
        for _ in range(devices)
    )


def promote_now_and_then(fleet: "VirtualFleet") -> None:
    """Plan that an operator makes the latest version `stable`, three times."""

    def promote() -> None:
        coordinator, now_s = fleet.coordinator, fleet.gateway.clock()
        with contextlib.suppress(RegistryError, DiskFullError):
            coordinator.releases.promote(
                coordinator.models.version, "stable", actor="operator", now_s=now_s
            )

    for at_s in _PROMOTED_AT_S:
        fleet.world.after(at_s, "promote", lambda: fleet.gateway.enter(promote))
