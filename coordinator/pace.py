"""Pace steering: how long a device is told to stay away, so that check-ins come at an even rate.

After Bonawitz et al., "Towards Federated Learning at Scale" (MLSys 2019, section 2.3). A small
fleet is told to come back together, shortly before the next round may open, so that there are
enough at once and nobody spends battery in between. A large one is spread evenly, over as long as
it takes at the rate that the file allows.

Pure: time, population and chance come in. The chance is a lot of (seed, device, check-in), so a
restarted coordinator gives the same answer.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

# However large the fleet, nobody is away for longer; a device whose window is shorter comes back
# when its conditions are right again, as ever.
AWAY_S_MAX: Final = 7_200.0
# A small fleet is there this long before a round may open.
BEFORE_OPENING_S: Final = 10.0
# An answer that changes a device's own rhythm by less is not worth its bytes.
_WORTH_S: Final = 5.0
# After a restart or a release so many devices are told at once; the others hear it when they speak.
TOLD_AT_ONCE_MAX: Final = 1_000
# Between check-ins a device lasts this much longer than it was asked to be silent.
LEASE_SLACK: Final = 1.25
# When every round is done, devices look in now and then for releases.
IDLE_S: Final = 3_600.0
# What devices do by themselves.
REFRESH: Final = 0.8
CHECK_IN_S_MIN: Final = 10.0
_WORD: Final = 2**64


def lot(seed: int, device: str, number: int) -> float:
    """A fraction, 0 to below 1, from digits that nobody can steer but by being somebody else."""
    digest = hashlib.sha256(f"{seed}/pace/{device}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / _WORD


def come_back_s(
    *,
    population: int,
    rate_max: float,
    usual_s: float,
    opens_in_s: float,
    chance: float,
) -> float | None:
    """How long a device that has just spoken shall be silent, in seconds; None: as it would be.

    With a population of N and a rate of r, one cycle takes N / r. If that is longer than devices
    wait by themselves, each waits for a time that is uniform between a half and one and a half of
    it: their mean rate is r, and whatever burst they came in is gone after one cycle. If no round
    may open for longer than that, they come in the last N / r before it does.

    Args:
        population: devices that are about, as far as is known.
        rate_max: check-ins per second that are wanted at most.
        usual_s: when it would speak again by itself.
        opens_in_s: until the next round may open; 0 when one may now, or is under way.
        chance: of this device and check-in, 0 to 1.
    """
    cycle_s = min(population / rate_max, AWAY_S_MAX / 1.5)
    gathers_s = opens_in_s - BEFORE_OPENING_S - cycle_s
    if gathers_s > max(1.5 * cycle_s, usual_s + _WORTH_S):
        return min(gathers_s + chance * cycle_s, AWAY_S_MAX)
    if cycle_s > usual_s + _WORTH_S:
        return cycle_s * (0.5 + chance)
    return None


class Population:
    """How many devices are about: those heard in this period and the one before.

    A period is as long as anybody is ever told to stay away, so nobody who is paced is forgotten.
    Memory: two references a device.
    """

    def __init__(self, now_s: float) -> None:
        self._now: set[str] = set()
        self._before: set[str] = set()
        self._began_s = now_s

    def hear(self, device: str, now_s: float) -> int:
        """A device speaks; returns how many there are."""
        if not 0.0 <= now_s - self._began_s < AWAY_S_MAX:
            self._before, self._now, self._began_s = self._now, set(), now_s
        self._now.add(device)
        self._before.discard(device)
        return len(self)

    def __len__(self) -> int:
        return len(self._now) + len(self._before)


class Pacer:
    """Steers the check-ins of one federation.

    Args:
        seed: the federation's public seed.
        rate_max: check-ins per second that are wanted at most.
        now_s: unix seconds.
    """

    def __init__(self, seed: int, rate_max: float, now_s: float) -> None:
        self.population = Population(now_s)
        self._seed = seed
        self.rate_max = rate_max

    def silence_s(
        self, device: str, check_in: int, window_s: float, *, opens_in_s: float, now_s: float
    ) -> float | None:
        """How long a device that checks in shall be silent; None: as long as it would be.

        Args:
            device: its name.
            check_in: the number of its check-in.
            window_s: what it has promised.
            opens_in_s: until the next round may open.
            now_s: unix seconds.
        """
        return come_back_s(
            population=self.population.hear(device, now_s),
            rate_max=self.rate_max,
            usual_s=usual_s(window_s),
            opens_in_s=opens_in_s,
            chance=lot(self._seed, device, check_in),
        )

    def idle_s(self, device: str, check_in: int) -> float:
        """How long a device shall be silent when no round will open any more."""
        cycle_s = max(IDLE_S, len(self.population) / self.rate_max)
        return min(cycle_s * (0.75 + lot(self._seed, device, check_in) / 2.0), AWAY_S_MAX)

    def recall(self, devices: Sequence[str], number: int, at_once: int) -> list[tuple[str, float]]:
        """Whom to ask to speak again after a restart, and in how many seconds.

        Drawn by lot, the first `at_once` now, the others at the rate that is wanted; of a large
        fleet the rest is not asked, but speaks when it would have.

        Args:
            devices: who may be there.
            number: enters the draw.
            at_once: how many a round needs.
        """
        drawn = sorted(devices, key=lambda device: lot(self._seed, device, number))
        told = drawn[: max(TOLD_AT_ONCE_MAX, at_once)]
        return [
            (device, max(place - at_once, 0) / self.rate_max) for place, device in enumerate(told)
        ]

    def told_at_once(self, devices: Sequence[str], number: int) -> list[str]:
        """Whom to tell news at once: all of a small fleet, some of a large one, in order of name.

        The others hear it at their next check-in.
        """
        if len(devices) <= TOLD_AT_ONCE_MAX:
            return sorted(devices)
        drawn = sorted(devices, key=lambda device: lot(self._seed, device, number))
        return sorted(drawn[:TOLD_AT_ONCE_MAX])


def usual_s(window_s: float) -> float:
    """When a device speaks again by itself (docs/protocol.md, section 8)."""
    return max(REFRESH * window_s, CHECK_IN_S_MIN)
