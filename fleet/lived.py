"""What befalls a device that lives days: the days before its world, and what chance has for it.

Chance is looked up, never drawn from the world's stream: a device that vanishes from round 12 does
so whoever else was chosen, and two runs that differ in a rule alone differ by that rule.
"""

import hashlib
from typing import Final

from device_profiles import DeviceProfile, conditions_at
from edge_sdk import Conditions, Policy
from edge_sdk.forecast import Diary, Spells
from edge_sdk.policy import judge
from edge_sdk.signals import GateOpened

# How long a device has lived when its world begins, and how often its days are looked at.
DAYS_BEFORE: Final = 4
LOOK_EVERY_S: Final = 1_800.0
_DAY_S: Final = 86_400.0
_WORD: Final = 2**64


def chance_of(seed: int, what: str, number: int) -> tuple[float, float, float]:
    """Three fractions, 0 to below 1, of a device's seed, a purpose and a number."""
    digest = hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest()
    first, second, third = (
        int.from_bytes(digest[at : at + 8], "little") / _WORD for at in (0, 8, 16)
    )
    return first, second, third


def as_sensed(profile: DeviceProfile, seed: int, unix_s: float) -> tuple[Conditions, bool]:
    """What a device's sensors say at a time of its day, and whether it can be reached."""
    now = conditions_at(profile, seed, unix_s)
    sensed = Conditions(
        battery_fraction=now.battery_fraction,
        charging=now.charging,
        metered=now.metered,
        cpu_load=0.0 if now.idle or profile.on_mains else 1.0,
    )
    return sensed, now.online


def live_before(profile: DeviceProfile, seed: int, start_unix_s: float, policy: Policy) -> Spells:
    """The diary of the days before the world begins, lived in fast forward."""
    if profile.on_mains:
        # Every look would be the same.
        diary = Diary().note(start_unix_s - DAYS_BEFORE * _DAY_S, is_open=True)
        return diary.note(start_unix_s, is_open=True).kept
    diary, was_open = Diary(), False
    for look in range(int(DAYS_BEFORE * _DAY_S / LOOK_EVERY_S) + 1):
        now_s = start_unix_s - DAYS_BEFORE * _DAY_S + look * LOOK_EVERY_S
        sensed, _online = as_sensed(profile, seed, now_s)
        gate = judge(policy, sensed, was_open=was_open)
        was_open = isinstance(gate, GateOpened)
        diary = diary.note(now_s, is_open=was_open)
    return diary.kept
