"""The owner's rules, and what the device is like now: together they open or close the gate."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.forecast import UNKNOWN_S
from edge_sdk.signals import LEASE_S, GateClosed, GateOpened
from wire.errors import PotluckError
from wire.limits import LEASE_S_MAX

# A gate that closed on battery opens a little above the bound, or it would flap around it.
BATTERY_HYSTERESIS: Final = 0.02
# More often than this a fleet would do little else than check in.
CHECK_IN_S_MIN: Final = 20.0
SECONDS_PER_DAY: Final = 86_400
# How often the rules are looked at.
GATE_EVERY_S: Final = 5.0


class PolicyError(PotluckError):
    """A rule that cannot be kept; the text says which."""


@dataclass(frozen=True)
class Policy:
    """What the owner allows.

    Attributes:
        min_battery: least battery fraction to work on without a charger.
        require_charging: work on a charger only.
        allow_metered: work over a network that is paid by the byte.
        bytes_per_day_max: MQTT bytes both ways in a UTC day, 0 for no bound.
        cpu_load_max: busiest that the machine may be with other work, as a fraction of all cores.
        check_in_s: how long a check-in promises to be there; the next one comes a little earlier.
        low_priority: train on a thread that lets other programs go first, where the system has
            such threads. Not for an app whose own loop is Python: the thread may then be kept from
            running while it holds the interpreter, and the loop waits for it.

    Raises:
        PolicyError: a fraction outside 0..1, a negative budget, or a check-in out of bounds.
    """

    min_battery: float = 0.3
    require_charging: bool = False
    allow_metered: bool = False
    bytes_per_day_max: int = 0
    cpu_load_max: float = 1.0
    check_in_s: float = LEASE_S
    low_priority: bool = False

    def __post_init__(self) -> None:
        for name in ("min_battery", "cpu_load_max"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PolicyError(f"{name} is {getattr(self, name)}, not a fraction of 0 to 1")
        if self.bytes_per_day_max < 0:
            raise PolicyError(f"bytes_per_day_max is {self.bytes_per_day_max}; 0 means no bound")
        if not CHECK_IN_S_MIN <= self.check_in_s <= LEASE_S_MAX:
            raise PolicyError(
                f"check_in_s is {self.check_in_s}, not {CHECK_IN_S_MIN:g} to {LEASE_S_MAX:g}"
            )


@dataclass(frozen=True)
class Conditions:
    """What the device is like now. Mains counts as a full battery on a charger.

    `window_s` is how long it will stay so, for an app that knows; else the device forecasts it from
    what it has lived.
    """

    battery_fraction: float = 1.0
    charging: bool = True
    metered: bool = False
    cpu_load: float = 0.0
    window_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.battery_fraction <= 1.0:
            raise PolicyError(f"battery_fraction is {self.battery_fraction}, not 0 to 1")
        window_s = 0.0 if self.window_s is None else self.window_s
        if not (math.isfinite(window_s) and window_s >= 0.0):
            raise PolicyError(f"window_s is {self.window_s}, not seconds from now")


def sense() -> Conditions:
    """Ask the operating system; what it does not know counts as good.

    Whether a network is metered no system tells a Python program: an app that knows passes its own
    source of conditions.
    """
    import psutil  # noqa: PLC0415 - 5 MB that a device with its own source need not load

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    # Our own training must not look like somebody else's work.
    own = _this_process().cpu_percent(interval=None) / (100.0 * (psutil.cpu_count() or 1))
    load = max(psutil.cpu_percent(interval=None) / 100.0 - own, 0.0)
    if battery is None:
        return Conditions(cpu_load=load)
    return Conditions(
        battery_fraction=min(max(battery.percent / 100.0, 0.0), 1.0),
        charging=bool(battery.power_plugged),
        cpu_load=load,
    )


@functools.cache
def _this_process() -> Any:
    """One object: psutil measures from one call to the next."""
    import psutil  # noqa: PLC0415 - as in `sense`

    return psutil.Process()


def judge(
    policy: Policy,
    now: Conditions,
    *,
    spent_bytes_today: int,
    was_open: bool,
    forecast_s: float = UNKNOWN_S,
) -> GateOpened | GateClosed:
    """Open, with what a check-in says of the device, or closed for one reason.

    Args:
        policy: what the owner allows.
        now: what the device is like.
        spent_bytes_today: MQTT bytes both ways in this UTC day.
        was_open: whether the gate was open when it was last looked at.
        forecast_s: how long it will stay open, where the conditions do not say.
    """
    floor = policy.min_battery if was_open else min(policy.min_battery + BATTERY_HYSTERESIS, 1.0)
    reason = ""
    # Bytes first: a gate that is closed for them holds releases back too.
    if policy.bytes_per_day_max and spent_bytes_today >= policy.bytes_per_day_max:
        reason = "byte_budget_spent"
    elif now.metered and not policy.allow_metered:
        reason = "metered"
    elif not now.charging and policy.require_charging:
        reason = "not_charging"
    elif not now.charging and now.battery_fraction < floor:
        reason = "battery_low"
    elif now.cpu_load > policy.cpu_load_max:
        reason = "cpu_busy"
    if reason:
        return GateClosed(reason)
    return GateOpened(
        window_s=forecast_s if now.window_s is None else now.window_s,
        battery_fraction=now.battery_fraction,
        charging=now.charging,
        metered=now.metered,
        check_in_s=policy.check_in_s,
    )
