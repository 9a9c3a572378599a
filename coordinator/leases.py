"""Who is there: what each device said in its latest check-in, and until when that holds.

A device is invited only while its lease runs; a lease ends when the device is invited, withdraws,
loses its link, or by its own clock-free promise ("for the next 120 s"). *Expected* devices are
connected and have just been settled: they will speak in a moment, and waiting that moment makes
the next round's choice independent of who was quickest.
"""

from dataclasses import dataclass, replace

from wire.messages import Available


@dataclass(frozen=True, slots=True)
class Lease:
    """A device's promise to be there until `until_s`; it expects to be until `stays_until_s`."""

    device: str
    check_in: int
    until_s: float
    device_class: str
    battery_fraction: float
    charging: bool
    metered: bool
    held_version: int
    stays_until_s: float


class Leases:
    """Leases of all devices; memory grows with the devices that are connected."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._heard: set[str] = set()
        self._expected: set[str] = set()
        self._gone: dict[str, int] = {}

    def check_in(
        self, device: str, message: Available, now_s: float, *, silent_s: float = 0.0
    ) -> Lease:
        """A device speaks; its newest word replaces the last.

        Whoever is asked to be silent for `silent_s` is there as long, if it expects to be.
        """
        stays_s = max(message.stays_s, message.window_s)
        lease = Lease(
            device=device,
            check_in=message.check_in,
            until_s=now_s + max(message.window_s, min(silent_s, stays_s)),
            device_class=message.device_class,
            battery_fraction=message.battery_fraction,
            charging=message.charging,
            metered=message.metered,
            held_version=message.held_version,
            stays_until_s=now_s + stays_s,
        )
        self._leases[device] = lease
        self._heard.add(device)
        self._expected.discard(device)
        return lease

    def end(self, device: str) -> bool:
        """The lease is used up, withdrawn or void; returns whether there was one."""
        had_one = self._leases.pop(device, None) is not None
        self._heard.add(device)
        self._expected.discard(device)
        return had_one

    def end_since(self, device: str, check_in: int) -> None:
        """The link is lost on which everything after `check_in` was said.

        Links follow each other: a last will of one before the last that was lost is a replay.
        """
        if check_in < self._gone.get(device, 0):
            return
        self._gone[device] = check_in
        lease = self._leases.get(device)
        if lease is None or lease.check_in > check_in:
            self.end(device)

    def on_clock_step(self, by_s: float) -> None:
        """Somebody has set the clock: a promise lasts as long as it was given for."""
        self._leases = {
            device: replace(
                lease, until_s=lease.until_s + by_s, stays_until_s=lease.stays_until_s + by_s
            )
            for device, lease in self._leases.items()
        }

    def expect(self, device: str) -> None:
        """The device is connected and about to speak again."""
        if device not in self._leases:
            self._expected.add(device)

    @property
    def heard(self) -> int:
        """How many devices have spoken at all since the start."""
        return len(self._heard)

    @property
    def expected(self) -> int:
        """How many devices are about to speak."""
        return len(self._expected)

    def stop_expecting(self) -> None:
        """Patience is over."""
        self._expected.clear()

    def running(self) -> dict[str, Lease]:
        """A copy of all leases, those too that have ended and that nobody has looked at since."""
        return dict(self._leases)

    def valid(self, now_s: float) -> list[Lease]:
        """Leases that still run, in order of device id; those that ended are dropped."""
        self._leases = {k: v for k, v in self._leases.items() if v.until_s > now_s}
        return [self._leases[device] for device in sorted(self._leases)]
