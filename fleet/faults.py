"""What goes wrong on purpose, as data: which devices, in which round, in which way.

A fault file is TOML with one `[[fault]]` table for each; `docs/how-to/faults.md` has a line on each
key. A fault strikes a device the first time that it trains in `round` or later; `garbage` strikes
every time.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from wire import settings
from wire.errors import PotluckError

Kind = Literal["vanish", "garbage", "flap", "low_battery"]


class FaultError(PotluckError):
    """A fault file that cannot be used; the text says why."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One way in which devices fail.

    `vanish`: loses its link for good. `garbage`: sends broken frames and a broken update. `flap`:
    loses its link for `for_s`. `low_battery`: its gate closes for `for_s`.
    """

    kind: Kind
    devices: (
        Annotated[int, Meta(ge=1)]
        | Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]
    ) = 1
    round: Annotated[int, Meta(ge=1)] = 1
    for_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 1.0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    fault: tuple[Fault, ...] = ()


def load_faults(path: Path) -> tuple[Fault, ...]:
    """Read a fault file.

    Raises:
        settings.SettingsError: one line with file, line, key and what is known instead.
    """
    return settings.convert(_File, settings.load(path), path).fault


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
