"""A gate that flaps: heat, memory, disk, load and network that come and go around the bounds.

Each sense has a timeline that follows from a device's seed: hours in which all is well, then a
burst of changes, some of them a fraction of a second apart, between a value beyond the owner's
bound, one within the hysteresis beside it, and a good one. A timeline is looked up, never stepped
through, so a checker can ask what was forbidden without having been there.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk import Policy
from fleet.lived import chance_of

_BAD, _BESIDE, _GOOD = range(3)
# Seconds that a stretch lasts, and up to twice that: by lot, within a burst and between two.
_BURST_S: Final = (0.2, 0.8, 3.0, 8.0, 40.0, 200.0, 900.0, 3_000.0)
_WELL_S: Final = (1_800.0, 7_200.0, 14_400.0, 36_000.0)
_CHANGES_MAX: Final = 9
_LAST_FIRST_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """A stretch in which a device trained or evaluated, in the world's time.

    `wall_s` is what its clock showed at the end, `steps` how often that had been set by the
    beginning and by the end, `fraction` how full its battery was at the end.
    """

    began_s: float
    ended_s: float
    wall_s: float
    steps: tuple[int, int]
    fraction: float


class Flapping:
    """The senses of one device for a while; afterwards all is well.

    Args:
        seed: the device's.
        policy: around whose bounds they flap.
        until_s: when it ends, in the world's time.
    """

    def __init__(self, seed: int, policy: Policy, until_s: float) -> None:
        hot_c, load = policy.max_temperature_c, policy.cpu_load_max
        memory, disk = policy.min_free_memory_bytes, policy.min_free_disk_bytes
        values: dict[str, tuple[Any, Any, Any]] = {
            "temperature_c": (hot_c + 3.0, hot_c - 2.0, hot_c - 15.0),
            "free_memory_bytes": (memory // 2, memory * 9 // 8, 4 * memory),
            "free_disk_bytes": (disk // 2, disk * 9 // 8, 4 * disk),
            "cpu_load": (min(load + 0.1, 1.0), 0.95 * load, 0.1 * load),
            "metered": (True, False, False),
        }
        self._lines = {
            sense: _Line(*_timeline(seed, sense, until_s), levels)
            for sense, levels in values.items()
        }
        self._forbids = {
            "cpu_load": load < 1.0,
            "metered": not policy.allow_metered,
            "free_memory_bytes": memory > 0,
            "free_disk_bytes": disk > 0,
        }
        self._changes = sorted({at_s for line in self._lines.values() for at_s in line.at_s})

    def at(self, now_s: float) -> dict[str, Any]:
        """Fields of `Conditions` and what they are now."""
        return {sense: line.value(now_s) for sense, line in self._lines.items()}

    def next_change_s(self, now_s: float) -> float | None:
        """When something is another than now; None when nothing changes any more."""
        place = bisect_right(self._changes, now_s)
        return self._changes[place] if place < len(self._changes) else None

    def forbidden_s(self, began_s: float, ended_s: float) -> tuple[float, str]:
        """The longest stretch within these times in which a bound was passed, and whose."""
        return max(
            (line.longest_bad_s(began_s, ended_s), sense)
            for sense, line in self._lines.items()
            if self._forbids.get(sense, True)
        )


@dataclass(frozen=True, slots=True)
class _Line:
    at_s: tuple[float, ...]
    state: tuple[int, ...]
    levels: tuple[Any, Any, Any]

    def value(self, now_s: float) -> Any:
        return self.levels[self._state(bisect_right(self.at_s, now_s))]

    def _state(self, place: int) -> int:
        return self.state[place - 1] if place else _GOOD

    def longest_bad_s(self, began_s: float, ended_s: float) -> float:
        longest_s, bad_since_s = 0.0, None
        first = bisect_right(self.at_s, began_s)
        if self._state(first) == _BAD:
            bad_since_s = began_s
        for place in range(first, bisect_right(self.at_s, ended_s)):
            at_s = self.at_s[place]
            if self.state[place] == _BAD:
                bad_since_s = at_s if bad_since_s is None else bad_since_s
            elif bad_since_s is not None:
                longest_s, bad_since_s = max(longest_s, at_s - bad_since_s), None
        if bad_since_s is not None:
            longest_s = max(longest_s, ended_s - bad_since_s)
        return longest_s


def _timeline(seed: int, sense: str, until_s: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """When a sense changes, and to what; the last change is to the good."""
    times, states = [], []
    number = 0
    first, *_ = chance_of(seed, f"{sense} first", 0)
    now_s = first * _LAST_FIRST_S
    while now_s < until_s:
        how_many, well, more = chance_of(seed, f"{sense} burst", number)
        state = _GOOD
        for change in range(1 + int(how_many * _CHANGES_MAX)):
            which, how_long, longer = chance_of(seed, f"{sense} {number}", change)
            # From good mostly to bad: between burst and burst there is enough that is well.
            state = (state + (1 if which < 0.5 else 2)) % 3  # noqa: PLR2004 - evenly
            times.append(now_s)
            states.append(state)
            now_s += _BURST_S[int(how_long * len(_BURST_S))] * (1.0 + longer)
        times.append(now_s)
        states.append(_GOOD)
        now_s += _WELL_S[int(well * len(_WELL_S))] * (1.0 + more)
        number += 1
    return tuple(round(each, 6) for each in times), tuple(states)
