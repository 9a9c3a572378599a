"""The clocks of a world's processes: none is right, none runs at quite the right speed."""

from typing import Final

from fleet.world import World

# Quartz at room temperature: tens of parts per million, and cheap boards worse.
DRIFT_MAX: Final = 200e-6
_UPTIME_S_MAX: Final = 1e6


class WallClock:
    """What a process believes of the date: an offset, a drift, and whatever somebody sets it to.

    Args:
        world: whose time it misjudges.
        start_unix_s: the date when the world's time is 0.
        drift: how much too fast, as a fraction.
        offset_s: how far ahead it is at the start.

    Attributes:
        stepped_s: by how much it was set, all in all.
        steps: how often.
    """

    def __init__(
        self, world: World, start_unix_s: float, *, drift: float = 0.0, offset_s: float = 0.0
    ) -> None:
        self.stepped_s = 0.0
        self.steps = 0
        self._world = world
        self._start_s = start_unix_s + offset_s
        self._rate = 1.0 + drift

    def now_s(self) -> float:
        """Unix seconds, as far as the process knows."""
        return self._start_s + self._world.now_s * self._rate + self.stepped_s

    def world_s(self, unix_s: float) -> float:
        """When this clock will show a time, or has shown it, in the world's time."""
        return (unix_s - self._start_s - self.stepped_s) / self._rate

    def step(self, by_s: float) -> None:
        """Somebody sets the clock."""
        self.stepped_s += by_s
        self.steps += 1


class Uptime:
    """A monotonic clock: it drifts, nobody sets it, and a reboot starts it anew from anywhere.

    Args:
        world: whose time it misjudges.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rate = 1.0 + world.uniform(-DRIFT_MAX, DRIFT_MAX)
        self._began_s = 0.0
        self._base_s = 0.0

    def reboot(self) -> None:
        """Nothing that was noted of this clock before means anything now."""
        self._began_s = self._world.now_s
        self._base_s = round(self._world.uniform(0.0, _UPTIME_S_MAX), 3)

    def now_s(self) -> float:
        """Seconds since a moment that nobody knows."""
        return self._base_s + (self._world.now_s - self._began_s) * self._rate

    def world_s(self, uptime_s: float) -> float:
        """When this clock will show a time, in the world's time."""
        return self._began_s + (uptime_s - self._base_s) / self._rate
