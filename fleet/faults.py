"""What goes wrong on purpose, as data: which devices, in which round, in which way.

A fault file is TOML with one `[[fault]]` table for each; `docs/how-to/faults.md` has a line on each
key. A fault strikes a device the first time that it trains in `round` or later; `garbage` and the
attacks strike every time. `[[event]]` tables break anything at a given time: in virtual time alone,
where there is one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from wire import settings
from wire.errors import PotluckError

Kind = Literal[
    "vanish", "garbage", "flap", "low_battery", "sign_flip", "scale", "nan", "lie_samples"
]


EventKind = Literal[
    "crash",
    "power_loss",
    "crash_at_effect",
    "disk_full",
    "model_damage",
    "link_break",
    "partition",
    "partition_up",
    "partition_down",
    "clog",
    "broker_kill",
    "weather",
    "clock_step",
    "gate_close",
    "opt_out",
    "unplug",
    "vanish",
    "roam",
]

GATEWAY: Final = -1


class FaultError(PotluckError):
    """A fault file that cannot be used; the text says why."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One way in which devices fail.

    `vanish`: loses its link for good. `garbage`: sends broken frames and a broken update. `flap`:
    loses its link for `for_s`. `low_battery`: its gate closes for `for_s`. The others are attacks,
    see `fleet.attacks`; `amount` is how many times as long what `sign_flip` and `scale` send is.
    """

    kind: Kind
    devices: (
        Annotated[int, Meta(ge=1)]
        | Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]
    ) = 1
    round: Annotated[int, Meta(ge=1)] = 1
    for_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 1.0
    amount: Annotated[float, Meta(gt=0.0, le=1e6)] = 10.0


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that goes wrong.

    `device` is a device's number, or -1 for the gateway (and the broker beside it). `for_s` is how
    long it lasts; `amount` is the number of effects before `crash_at_effect`, the seconds of a
    `clock_step`, how many times slower a `clog` is, the probability of `weather`, what an `unplug`
    leaves in the battery, as a fraction, and the seconds to the broker from where a device roams.
    """

    kind: EventKind
    at_s: Annotated[float, Meta(ge=0.0, le=31_536_000.0)]
    device: Annotated[int, Meta(ge=-1)] = GATEWAY
    for_s: Annotated[float, Meta(gt=0.0, le=31_536_000.0)] = 30.0
    amount: float = 1.0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    fault: tuple[Fault, ...] = ()
    event: tuple[Event, ...] = ()


def load_faults(path: Path) -> tuple[tuple[Fault, ...], tuple[Event, ...]]:
    """Read a fault file: what befalls devices by round, and what befalls anybody by time.

    Raises:
        settings.SettingsError: one line with file, line, key and what is known instead.
    """
    file = settings.convert(_File, settings.load(path), path)
    return file.fault, file.event


def assign(faults: Sequence[Fault], count: int, seed: int) -> dict[int, Fault]:
    """Which device gets which fault: named ones as named, the others by lot, one each.

    Raises:
        FaultError: a device that is not there, one named twice, or more faults than devices.
    """
    struck: dict[int, Fault] = {}
    for fault in faults:
        if isinstance(fault.devices, int):
            continue
        for device in fault.devices:
            if device >= count or device in struck:
                why = "has a fault already" if device in struck else f"is not one of {count}"
                raise FaultError(f"fault {fault.kind!r}: device {device} {why}")
            struck[device] = fault
    lots = sorted(
        (device for device in range(count) if device not in struck),
        key=lambda device: hashlib.sha256(f"{seed}/fault/{device}".encode()).digest(),
    )
    for fault in faults:
        if isinstance(fault.devices, int):
            if fault.devices > len(lots):
                raise FaultError(f"fault {fault.kind!r}: only {len(lots)} devices are left for it")
            for _ in range(fault.devices):
                struck[lots.pop(0)] = fault
    return struck


def describe(faults: Sequence[Fault]) -> tuple[str, ...]:
    """One line a fault, for reports."""
    return tuple(
        f"{fault.kind}: "
        + (
            f"{fault.devices} device{'s' if fault.devices > 1 else ''}"
            if isinstance(fault.devices, int)
            else f"devices {', '.join(str(device) for device in fault.devices)}"
        )
        + f", from round {fault.round}"
        for fault in faults
    )
