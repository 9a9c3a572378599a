"""The owner's rules, and what the device is like now: together they open or close the gate.

`judge` is pure. A bound that what it bounds could cross back and forth has hysteresis: a gate that
it has closed opens a little on the other side of it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from edge_sdk.forecast import UNKNOWN_S
from edge_sdk.quiet import QUIET_S_MAX, parse_span, seconds_in
from edge_sdk.signals import LEASE_S, NOTHING, GateClosed, GateOpened, Spent
from wire.errors import PotluckError
from wire.limits import LEASE_S_MAX

BATTERY_HYSTERESIS: Final = 0.02
TEMPERATURE_HYSTERESIS_C: Final = 5.0
# Of the bound itself: loads and free bytes are of any size.
LOAD_HYSTERESIS: Final = 0.1
FREE_HYSTERESIS: Final = 0.25
# More often than this a fleet would do little else than check in.
CHECK_IN_S_MIN: Final = 20.0
SECONDS_PER_DAY: Final = 86_400
# How often the rules are looked at, and how often while something is trained: work that is to stop
# stops within a second, the rest of which is for its batch.
GATE_EVERY_S: Final = 5.0
GATE_WORKING_S: Final = 0.5
_MIB: Final = 1 << 20
# Sensors of processors, boards and batteries, by what psutil calls them. Others say what they like:
# an input that nothing is connected to reads 127 degrees.
_CHIPS: Final = ("core", "k10", "zen", "cpu", "soc", "acpi", "bat", "bms")
_READABLE_C: Final = (-60.0, 150.0)


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
        joules_per_day_max: energy beyond idling in a UTC day, 0 for no bound; see `edge_sdk.energy`
            for how it is estimated.
        training_s_per_day_max: seconds of training and evaluation in a UTC day, 0 for no bound.
        cpu_load_max: busiest that the machine may be with other work, as a fraction of all cores; 1
            is no bound.
        max_temperature_c: hottest that processor or battery may be, in degrees Celsius.
        min_free_memory_bytes: least memory that others may have left, 0 for no bound.
        min_free_disk_bytes: least room on the disk of the state directory, 0 for no bound.
        training_memory_bytes_max: most that the process may grow while something is trained, by
            its resident memory, 0 for no bound.
        quiet_hours: spans of the local day in which nothing is begun and work stops, each
            `HH:MM-HH:MM`.
        check_in_s: how long a check-in promises to be there; the next one comes a little earlier.
        check_releases_at_once: the app's own check of a release does not wait for the gate.
        low_priority: train on a thread that lets other programs go first, where the system has
            such threads. Not for an app whose own loop is Python: the thread may then be kept from
            running while it holds the interpreter, and the loop waits for it.

    Raises:
        PolicyError: a fraction outside 0..1, a negative budget, a check-in out of bounds, or quiet
            hours that are none or leave less than two hours of a day.
    """

    min_battery: float = 0.3
    require_charging: bool = False
    allow_metered: bool = False
    bytes_per_day_max: int = 0
    joules_per_day_max: float = 0.0
    training_s_per_day_max: float = 0.0
    cpu_load_max: float = 1.0
    max_temperature_c: float = 80.0
    min_free_memory_bytes: int = 64 * _MIB
    min_free_disk_bytes: int = 64 * _MIB
    training_memory_bytes_max: int = 0
    quiet_hours: tuple[str, ...] = ()
    check_in_s: float = LEASE_S
    check_releases_at_once: bool = False
    low_priority: bool = False

    def __post_init__(self) -> None:
        for name in ("min_battery", "cpu_load_max"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PolicyError(f"{name} is {getattr(self, name)}, not a fraction of 0 to 1")
        for name in (
            "bytes_per_day_max",
            "joules_per_day_max",
            "training_s_per_day_max",
            "min_free_memory_bytes",
            "min_free_disk_bytes",
            "training_memory_bytes_max",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise PolicyError(f"{name} is {getattr(self, name)}; 0 means no bound")
        if math.isnan(self.max_temperature_c):
            raise PolicyError("max_temperature_c is not a number of degrees Celsius")
        object.__setattr__(self, "quiet_hours", tuple(self.quiet_hours))
        try:
            quiet_s = seconds_in(tuple(parse_span(text) for text in self.quiet_hours))
        except (TypeError, ValueError) as error:
            raise PolicyError(f"quiet_hours: {error}") from error
        if quiet_s > QUIET_S_MAX:
            raise PolicyError("quiet_hours leave less than two hours of a day to work in")
        if not CHECK_IN_S_MIN <= self.check_in_s <= LEASE_S_MAX:
            raise PolicyError(
                f"check_in_s is {self.check_in_s}, not {CHECK_IN_S_MIN:g} to {LEASE_S_MAX:g}"
            )

    @property
    def budgets(self) -> Spent:
        """What a day may cost; 0 of something is no bound on it."""
        return Spent(self.bytes_per_day_max, self.joules_per_day_max, self.training_s_per_day_max)


@dataclass(frozen=True)
class Conditions:
    """What the device is like now. Mains counts as a full battery on a charger.

    What is None is not known, and counts as good. `power_w` are the watts that training adds to
    what the device draws anyway, for an app with a meter. `window_s` is how long all this will stay
    so, for an app that knows; else the device forecasts it from what it has lived.

    Raises:
        PolicyError: a fraction outside 0..1, or a figure that is negative or not finite.
    """

    battery_fraction: float = 1.0
    charging: bool = True
    metered: bool = False
    cpu_load: float = 0.0
    temperature_c: float | None = None
    free_memory_bytes: int | None = None
    free_disk_bytes: int | None = None
    power_w: float | None = None
    window_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.battery_fraction <= 1.0:
            raise PolicyError(f"battery_fraction is {self.battery_fraction}, not 0 to 1")
        if math.isnan(self.cpu_load):
            raise PolicyError("cpu_load is not a number")
        if self.temperature_c is not None and not math.isfinite(self.temperature_c):
            raise PolicyError(f"temperature_c is {self.temperature_c}, not degrees Celsius")
        for name in ("free_memory_bytes", "free_disk_bytes", "power_w", "window_s"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise PolicyError(f"{name} is {value}, not a number of 0 or more")


Source = Callable[[], Conditions] | Mapping[str, Any]


def conditions_from(source: Source, directory: Path) -> Callable[[], Conditions]:
    """One function out of what an app may hand over.

    Args:
        source: a function that knows everything, or a mapping from fields of `Conditions` to
            values or to functions without arguments; the system is asked for the rest.
        directory: whose disk is looked at.

    Raises:
        PolicyError: the mapping names what no condition is called.
    """
    if source is sense:
        return functools.partial(sense, directory)
    if not isinstance(source, Mapping):
        return source
    unknown = sorted(set(source) - {field.name for field in fields(Conditions)})
    if unknown:
        raise PolicyError(f"conditions: there is no {', '.join(unknown)}")
    own = dict(source)

    def ask() -> Conditions:
        known = {name: value() if callable(value) else value for name, value in own.items()}
        return replace(sense(directory), **known)

    return ask


def sense(directory: Path | None = None) -> Conditions:
    """Ask the operating system; what it does not know counts as good.

    `directory` is where the disk's room is looked at. Whether a network is metered no system tells
    a Python program: an app that knows passes its own source of conditions.
    """
    import psutil  # noqa: PLC0415 - 5 MB that a device with its own source need not load

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    # Our own training must not look like somebody else's work.
    own = _this_process().cpu_percent(interval=None) / (100.0 * (psutil.cpu_count() or 1))
    load = max(psutil.cpu_percent(interval=None) / 100.0 - own, 0.0)
    now = Conditions(
        cpu_load=load,
        temperature_c=_hottest_c(psutil),
        free_memory_bytes=psutil.virtual_memory().available,
        free_disk_bytes=None if directory is None else psutil.disk_usage(str(directory)).free,
    )
    if battery is None:
        return now
    return replace(
        now,
        battery_fraction=min(max(battery.percent / 100.0, 0.0), 1.0),
        charging=bool(battery.power_plugged),
    )


def _hottest_c(psutil: Any) -> float | None:
    """The hottest of processor, board and battery, in degrees Celsius; None where nobody says."""
    if not hasattr(psutil, "sensors_temperatures"):  # macOS, Windows
        return None
    try:
        chips = psutil.sensors_temperatures()
    except OSError:
        return None
    coldest, hottest = _READABLE_C
    readings = [
        float(reading.current)
        for chip, found in chips.items()
        if any(part in chip.lower() for part in _CHIPS)
        for reading in found
        if coldest < reading.current < hottest
    ]
    return max(readings, default=None)


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(_this_process().memory_info().rss)


@functools.cache
def _this_process() -> Any:
    """One object: psutil measures from one call to the next."""
    import psutil  # noqa: PLC0415 - as in `sense`

    return psutil.Process()


def judge(
    policy: Policy,
    now: Conditions,
    *,
    was_open: bool,
    spent: Spent = NOTHING,
    quiet: bool = False,
    forecast_s: float = UNKNOWN_S,
) -> GateOpened | GateClosed:
    """Open, with what a check-in says of the device, or closed for one reason.

    Args:
        policy: what the owner allows.
        now: what the device is like.
        was_open: whether the gate was open when it was last looked at.
        spent: in this UTC day.
        quiet: whether it is one of the owner's quiet hours.
        forecast_s: how long it will stay open, where the conditions do not say.
    """
    strict = not was_open
    floor = min(policy.min_battery + BATTERY_HYSTERESIS * strict, 1.0)
    busy = policy.cpu_load_max * (1.0 - LOAD_HYSTERESIS * strict)
    hot_c = policy.max_temperature_c - TEMPERATURE_HYSTERESIS_C * strict
    free = 1.0 + FREE_HYSTERESIS * strict
    off_charger = not now.charging
    closed_by = (
        # Bytes and disk first: a gate that is closed for them holds releases back too.
        (_spent(spent.traffic_bytes, policy.bytes_per_day_max), "byte_budget_spent"),
        (now.metered and not policy.allow_metered, "metered"),
        (_below(now.free_disk_bytes, policy.min_free_disk_bytes * free), "disk_low"),
        (_spent(spent.joules, policy.joules_per_day_max), "energy_budget_spent"),
        (_spent(spent.training_s, policy.training_s_per_day_max), "training_budget_spent"),
        (quiet and bool(policy.quiet_hours), "quiet_hours"),
        (off_charger and policy.require_charging, "not_charging"),
        (off_charger and now.battery_fraction < floor, "battery_low"),
        (now.temperature_c is not None and now.temperature_c > hot_c, "too_hot"),
        (policy.cpu_load_max < 1.0 and now.cpu_load > busy, "cpu_busy"),
        (_below(now.free_memory_bytes, policy.min_free_memory_bytes * free), "memory_low"),
    )
    for closed, reason in closed_by:
        if closed:
            return GateClosed(reason)
    return GateOpened(
        window_s=forecast_s if now.window_s is None else now.window_s,
        battery_fraction=now.battery_fraction,
        charging=now.charging,
        metered=now.metered,
        check_in_s=policy.check_in_s,
    )


def _spent(spent: float, budget: float) -> bool:
    return 0.0 < budget <= spent


def _below(free_bytes: int | None, least_bytes: float) -> bool:
    return free_bytes is not None and free_bytes < least_bytes
