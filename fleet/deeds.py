"""Doing to a virtual fleet what an `Event` says."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from fleet.faults import GATEWAY, Event, FaultError
from fleet.hosts import Host
from fleet.network import Weather

if TYPE_CHECKING:
    from fleet.virtual import VirtualFleet

_BROKER_DOWN_S_MAX: Final = 30.0


def unleash(fleet: "VirtualFleet", events: Sequence[Event]) -> None:
    """Plan every event of a schedule in a fleet's world.

    Raises:
        FaultError: an event names a device that is not there.
    """
    for event in events:
        if event.device >= len(fleet.hosts):
            raise FaultError(f"event {event.kind!r}: there is no device {event.device}")
        deed = _Deed(fleet, event)
        name = f"nemesis {event.kind} {event.device}"
        fleet.world.after(event.at_s - fleet.world.now_s, name, getattr(deed, event.kind))


class _Deed:
    """What an event does, by the name of its kind."""

    def __init__(self, fleet: "VirtualFleet", event: Event) -> None:
        self._fleet = fleet
        self._event = event
        self._device = None if event.device == GATEWAY else fleet.hosts[event.device]
        self._host: Host = self._device or fleet.gateway
        self._link = fleet.gateway.link if self._device is None else self._device.device.link

    def _afterwards(self, name: str, action: Callable[[], None]) -> None:
        self._fleet.world.after(self._event.for_s, f"{name} {self._host.name}", action)

    def crash(self) -> None:
        self._host.crash(down_s=self._event.for_s)

    def power_loss(self) -> None:
        self._host.crash(down_s=self._event.for_s, silent=True)

    def crash_at_effect(self) -> None:
        fuse = self._host.fuse
        fuse.blows_at = fuse.effects + int(self._event.amount)

    def disk_full(self) -> None:
        self._host.fill_disk()
        self._afterwards("space", self._space)

    def _space(self) -> None:
        self._host.free_disk()

    def model_damage(self) -> None:
        if self._device is not None:
            self._device.shelf.damage()
            self._device.parts.damage()

    def link_break(self) -> None:
        self._link.broken("nemesis")

    def partition(self) -> None:
        self._link.freeze(out=True, into=True, for_s=self._event.for_s)

    def partition_up(self) -> None:
        self._link.freeze(out=True, into=False, for_s=self._event.for_s)

    def partition_down(self) -> None:
        self._link.freeze(out=False, into=True, for_s=self._event.for_s)

    def clog(self) -> None:
        self._link.slowed = max(self._event.amount, 1.0)
        self._afterwards("unclog", self._unclog)

    def _unclog(self) -> None:
        self._link.slowed = 1.0

    def broker_kill(self) -> None:
        self._fleet.network.kill_broker(min(self._event.for_s, _BROKER_DOWN_S_MAX))

    def weather(self) -> None:
        share = min(self._event.amount, 1.0)
        self._fleet.network.weather = Weather(lost=share / 2, doubled=share, delayed=share)
        self._afterwards("clear", self._clear)

    def _clear(self) -> None:
        self._fleet.network.weather = Weather()

    def clock_step(self) -> None:
        (self._device or self._fleet.gateway).step_clock(self._event.amount)

    def gate_close(self) -> None:
        if self._device is not None:
            self._device.close_gate(self._event.for_s)

    def opt_out(self) -> None:
        if self._device is not None:
            self._device.opt_out()
            self._afterwards("opt in", self._device.opt_in)

    def unplug(self) -> None:
        if self._device is None:
            self.power_loss()
        else:
            fraction = min(max(self._event.amount, 0.0), 1.0)
            self._device.unplug(for_s=self._event.for_s, battery_fraction=fraction)

    def roam(self) -> None:
        self._link.roam(max(self._event.amount, 0.0))

    def vanish(self) -> None:
        self._host.gone = True
        self._host.crash(silent=True)
