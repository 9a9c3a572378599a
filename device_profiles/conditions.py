"""What a device would say about itself at a given time: battery, charger, network, heat.

Everything follows from (profile, seed, time) by looking up words of chance, never by stepping
through the time before, so thousands of devices can be asked about any moment at constant cost.
Only sums, products and comparisons are used: no libm, so the same bits on any machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from device_profiles import _chance
from device_profiles.day import DAY_S, HOUR_S
from device_profiles.profile import DeviceProfile

# Estimates, the same for all classes. A device that is not ready on a day (in use, or away from its
# Wi-Fi) still has to charge, so its charger is in for longer than it is ready: while the curve is
# above this share of its peak, times the device's level.
_CHARGES_ABOVE_SHARE: Final = 0.9
# The level at which people plug in, and the one that is left at the quietest hour of the pattern.
_PLUGGED_IN_AT: Final = (0.10, 0.45)
_LEFT_AT_LOW_HOUR: Final = (0.50, 0.80)
# Indoors: coldest at 3:00, warmest at 15:00; places differ; a charging battery is warm.
_COLDEST_C: Final = 18.0
_DAY_SWING_C: Final = 6.0
_PLACE_SPREAD_C: Final = 6.0
_CHARGING_RISE_C: Final = 8.0
_COLDEST_HOUR: Final = 3.0

# A device is asked many times in one hour; making a Philox is most of the cost of asking.
_words = lru_cache(maxsize=1 << 14)(_chance.words)


@dataclass(frozen=True, slots=True)
class Conditions:
    """A device at one moment.

    Attributes:
        battery_fraction: 0 to 1; mains counts as full.
        charging: on mains or on a charger.
        metered: what network there is costs its owner by the byte.
        online: it can be reached at all.
        temperature_c: of the device's battery or board at rest, in degrees Celsius.
        idle: nobody is using it.
    """

    battery_fraction: float
    charging: bool
    metered: bool
    online: bool
    temperature_c: float
    idle: bool

    @property
    def ready(self) -> bool:
        """Idle, charging and on an unmetered network: the classic rule of production fleets.

        Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019.
        """
        return self.idle and self.charging and self.online and not self.metered


def conditions_at(
    profile: DeviceProfile, seed: int, now_s: float, *, utc_offset_s: float = 0.0
) -> Conditions:
    """The conditions of one device at one time.

    Args:
        profile: its class.
        seed: which device of that class, 0 to 2**128 - 1.
        now_s: unix time in seconds.
        utc_offset_s: local time minus UTC, in seconds.
    """
    pattern = profile.day
    local_s = now_s + utc_offset_s
    number, day_s = pattern.locate(local_s)
    day = _day(profile, seed, number)

    share = pattern.ready_share(day_s)
    ready = share > day.level
    charging = profile.on_mains or share > day.plugged_above
    hour = _words(seed, _chance.HOUR, int(local_s // HOUR_S))
    online = ready or _chance.uniform(hour[0]) < pattern.online_share
    metered = not ready and _chance.uniform(hour[1]) < pattern.metered_share

    battery_fraction = 1.0
    if not profile.on_mains:
        battery_fraction = _battery(day_s, day.spells, day.plugged_in_at, *day.ends)

    from_coldest_h = (local_s / HOUR_S - _COLDEST_HOUR) % 24.0
    warmth = 1.0 - abs(from_coldest_h - 12.0) / 12.0
    warm = _CHARGING_RISE_C if charging and not profile.on_mains else 0.0
    return Conditions(
        battery_fraction=battery_fraction,
        charging=charging,
        metered=metered,
        online=online,
        temperature_c=_COLDEST_C
        + _DAY_SWING_C * warmth
        + _PLACE_SPREAD_C * (day.place - 0.5)
        + warm,
        idle=ready,
    )


@dataclass(frozen=True, slots=True)
class _Day:
    """What chance has given one device for one day.

    `level` is what the curve must stand above for it to be ready, `plugged_above` to be charging;
    `ends` are the battery's levels at the day's borders.
    """

    place: float
    level: float
    plugged_above: float
    plugged_in_at: float
    ends: tuple[float, float]
    spells: Sequence[tuple[float, float]]


@lru_cache(maxsize=1 << 14)
def _day(profile: DeviceProfile, seed: int, day: int) -> _Day:
    pattern = profile.day
    habit, place, *_ = (_chance.uniform(word) for word in _words(seed, _chance.DEVICE, 0))
    # One lookup covers the day and its neighbours, on which the battery's ends depend.
    drawn = [_chance.uniform(word) for word in _words(seed, _chance.DAY, day - 1, 12)]
    levels = [
        habit if drawn[i + 1] < pattern.habit_share else drawn[i]
        for i in range(0, len(drawn), _chance.WORDS_PER_INDEX)
    ]
    plugged_above = [level * _CHARGES_ABOVE_SHARE * pattern.ready_peak for level in levels]
    # A charger that is in at the day's border holds the battery full there, on both sides.
    first, last = (
        1.0
        if min(plugged_above[i], plugged_above[i + 1]) < pattern.ready_low
        else _between(_LEFT_AT_LOW_HOUR, drawn[_chance.WORDS_PER_INDEX * (i + 1) + 2])
        for i in (0, 1)
    )
    return _Day(
        place=place,
        level=levels[1],
        plugged_above=plugged_above[1],
        plugged_in_at=_between(_PLUGGED_IN_AT, drawn[_chance.WORDS_PER_INDEX + 3]),
        ends=(first, last),
        spells=pattern.spells(plugged_above[1]),
    )


def _battery(
    day_s: float,
    spells: Sequence[tuple[float, float]],
    plugged_in_at: float,
    first: float,
    last: float,
) -> float:
    """The battery's level: straight lines down to each charging spell and up to full at its end.

    Args:
        day_s: seconds since the pattern's day began.
        spells: the day's charging spells, in seconds.
        plugged_in_at: level at which a spell begins.
        first: level at which the day begins.
        last: level at which it ends, which is where the next one begins.
    """
    then_s, level = 0.0, first
    for start_s, end_s in spells:
        low = plugged_in_at if start_s > 0.0 else first
        if day_s < start_s:
            return _line(day_s, then_s, start_s, level, low)
        if day_s < end_s:
            return _line(day_s, start_s, end_s, low, 1.0)
        then_s, level = end_s, 1.0
    return _line(day_s, then_s, DAY_S, level, last)


def _line(at: float, start: float, end: float, low: float, high: float) -> float:
    fraction = (at - start) / (end - start)
    return low * (1.0 - fraction) + high * fraction


def _between(bounds: tuple[float, float], fraction: float) -> float:
    low, high = bounds
    return low + (high - low) * fraction
