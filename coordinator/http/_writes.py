"""Every write: something that the coordinator's own loop does, between two messages.

A handler says what is to be done and waits for it; it touches nothing itself.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from coordinator.http import _views as views
from coordinator.http._desk import Desk, NotFoundError
from coordinator.http._reads import release
from coordinator.registry import Moved
from coordinator.service import Coordinator
from wire.errors import UnknownSenderError

# What is done to one device: (coordinator, device, reason, now_s) -> whether anything changed.
DeviceAction = Callable[[Coordinator, str, str, float], bool]


def promote(desk: Desk, version: int, body: views.WhichAlias) -> views.Moved:
    """Point an alias at a version; devices hear of `stable`."""
    releases = desk.coordinator.releases
    return _moved(
        desk.ask(lambda now_s: releases.promote(version, body.alias, actor="http", now_s=now_s))
    )


def rollback(desk: Desk, body: views.WhichAlias) -> views.Moved:
    """Point an alias at what it meant before; devices hear of `stable`."""
    releases = desk.coordinator.releases
    return _moved(desk.ask(lambda now_s: releases.rollback(body.alias, actor="http", now_s=now_s)))


def _moved(moved: Moved) -> views.Moved:
    return views.Moved(release(moved.release), moved.changed)


def pause(desk: Desk) -> views.Done:
    """Open no new round, over restarts too; the one that is open goes on."""

    def act(_now_s: float) -> bool:
        changed = not desk.coordinator.rounds.opening.paused
        desk.coordinator.rounds.opening.pause()
        return changed

    return views.Done(desk.ask(act))


def resume(desk: Desk) -> views.Done:
    """Open rounds again."""

    def act(now_s: float) -> bool:
        changed = desk.coordinator.rounds.opening.paused
        desk.coordinator.rounds.opening.resume(now_s)
        return changed

    return views.Done(desk.ask(act))


def _pardon(coordinator: Coordinator, device: str, _reason: str, now_s: float) -> bool:
    """Forget what speaks against a device."""
    return coordinator.pardon(device, now_s)


# One line an action: each becomes POST /v1/devices/{device}/NAME.
DEVICE_ACTIONS: Final[Mapping[str, DeviceAction]] = MappingProxyType(
    {
        "pardon": _pardon,
        "revoke": Coordinator.revoke,
    }
)


def act_on_device(action: DeviceAction) -> Callable[[Desk, str, views.Why], views.Done]:
    """The handler of an action."""

    def handle(desk: Desk, device: str, body: views.Why) -> views.Done:
        try:
            changed = desk.ask(lambda now_s: action(desk.coordinator, device, body.reason, now_s))
        except UnknownSenderError as error:
            raise NotFoundError(str(error)) from error
        return views.Done(changed)

    return handle
