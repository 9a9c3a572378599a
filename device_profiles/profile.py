"""A class of devices: its numbers, and the TOML file that holds them with their sources."""

import functools
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from device_profiles import _sourced
from device_profiles._sourced import ProfileError
from device_profiles.day import DayPattern, Share

CLASSES: Final = Path(__file__).parent / "classes"

Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0.0)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0)]


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one class of devices is like. Powers are of the whole device, at its supply.

    Attributes:
        name: short, for tables and mixes.
        description: one line for people.
        training_gflops: float32 operations per nanosecond that training reaches, all cores.
        ram_bytes: main memory.
        battery_wh: capacity in watt hours; 0 is mains.
        idle_w: power when it does nothing, in watts.
        training_w: power while it trains, in watts.
        down_mbps: what it receives, in 1e6 bits per second.
        up_mbps: what it sends, in 1e6 bits per second.
        down_j_per_mb: network energy to receive 1e6 bytes, in joules.
        up_j_per_mb: network energy to send 1e6 bytes, in joules.
        session_tail_j: energy of the radio's staying awake after a session, in joules.
        vanish_per_round: probability that an invited device leaves the round without a word.
        reboots_per_day: mean number of restarts in a day.
        day: when it is ready, reachable and on which kind of network.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    description: Annotated[str, msgspec.Meta(min_length=1)]
    training_gflops: Positive
    ram_bytes: Annotated[int, msgspec.Meta(gt=0)]
    battery_wh: NotNegative
    idle_w: NotNegative
    training_w: Positive
    down_mbps: Positive
    up_mbps: Positive
    down_j_per_mb: NotNegative
    up_j_per_mb: NotNegative
    session_tail_j: NotNegative
    vanish_per_round: Share
    reboots_per_day: NotNegative
    day: DayPattern

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other."""
        if self.training_w < self.idle_w:
            raise ValueError(f"training_w {self.training_w} is below idle_w {self.idle_w}")

    @property
    def on_mains(self) -> bool:
        """Whether it has no battery to mind."""
        return self.battery_wh == 0.0


def class_names() -> tuple[str, ...]:
    """The names of the classes that come with potluck, sorted."""
    return _sourced.names(CLASSES)


def load_class(name_or_path: str | Path, *, beside: Path | None = None) -> DeviceProfile:
    """Read one class of devices.

    Args:
        name_or_path: a shipped name (`class_names()`), or the path of a TOML file of your own:
            what ends in `.toml` or has a slash is a path.
        beside: the folder that a relative path starts from; by default the working directory.

    Raises:
        ProfileError: an unknown name, a file that cannot be read, an unknown or missing key, a
            value out of range, or a number without a source.
    """
    profile, _ = _read(name_or_path, beside)
    return profile


def class_sources(name_or_path: str | Path) -> dict[str, str]:
    """Where each number of a class is from, by its dotted key (`training_w`, `day.habit_share`).

    Raises:
        ProfileError: as `load_class`.
    """
    _, sources = _read(name_or_path, None)
    return dict(sources)


def class_table() -> str:
    """The shipped classes as a Markdown table, as the how-to shows it."""
    rows = [
        "| class | GFLOP/s | RAM (GB) | battery (Wh) | idle / train (W) | down / up Mbps | ready |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for profile in map(load_class, class_names()):
        battery = "mains" if profile.on_mains else f"{profile.battery_wh:g}"
        rows.append(
            f"| `{profile.name}` | {profile.training_gflops:g} | {profile.ram_bytes / 1e9:.1f}"
            f" | {battery} | {profile.idle_w:g} / {profile.training_w:g}"
            f" | {profile.down_mbps:g} / {profile.up_mbps:g}"
            f" | {profile.day.ready_low:.0%} to {profile.day.ready_peak:.0%} |"
        )
    return "\n".join(rows) + "\n"


def _read(name_or_path: str | Path, beside: Path | None) -> tuple[DeviceProfile, dict[str, str]]:
    path = _sourced.find("class", CLASSES, name_or_path, beside=beside)
    # What is shipped does not change while a process runs; what a user writes may.
    return _read_shipped(path) if path.parent == CLASSES else _read_file(path)


def _read_file(path: Path) -> tuple[DeviceProfile, dict[str, str]]:
    return _sourced.read(path).convert(DeviceProfile)


_read_shipped = functools.cache(_read_file)


__all__ = [
    "CLASSES",
    "DeviceProfile",
    "ProfileError",
    "class_names",
    "class_sources",
    "class_table",
    "load_class",
]
