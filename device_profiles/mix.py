"""A fleet's make-up: which share of its devices is of which class."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final

import msgspec

from device_profiles import _chance, _sourced
from device_profiles._sourced import ProfileError
from device_profiles.day import Share
from device_profiles.profile import DeviceProfile, load_class

MIXES: Final = Path(__file__).parent / "mixes"
SHARES_SUM_TOLERANCE: Final = 1e-6


class _MixFile(msgspec.Struct, kw_only=True):
    """A mix's TOML file."""

    name: str
    description: str
    classes: Annotated[dict[str, Share], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Mix:
    """Classes of devices and their shares, which sum to 1.

    Attributes:
        name: the shipped name or the file's; "mapping" when it was given as one.
        classes: the profiles, in the order in which they were written.
        shares: the share of each, 0 to 1.
    """

    name: str
    classes: tuple[DeviceProfile, ...]
    shares: tuple[float, ...]

    def counts(self, count: int) -> tuple[int, ...]:
        """How many of `count` devices are of each class, by largest remainder."""
        return apportion(self.shares, count)

    def assign(self, count: int, seed: int) -> list[DeviceProfile]:
        """A profile for each of `count` devices: exact counts, in an order that `seed` shuffles.

        The shuffle is Fisher and Yates's on `Philox.random_raw`, the same on any machine.
        """
        fleet = [
            profile
            for profile, of_class in zip(self.classes, self.counts(count), strict=True)
            for _ in range(of_class)
        ]
        drawn = _chance.words(seed, _chance.SHUFFLE, 0, max(count, 1))
        for last in range(count - 1, 0, -1):
            other = (drawn[last] * (last + 1)) >> 64
            fleet[last], fleet[other] = fleet[other], fleet[last]
        return fleet


def apportion(shares: Sequence[float], count: int) -> tuple[int, ...]:
    """Split `count` by shares: each gets its quota rounded down, the largest remainders one more.

    Hamilton's method, in exact fractions of the shares as written; equal remainders go to the
    first. Every part differs from `count * share` by less than 1, and they sum to `count`.
    """
    written = [Fraction(repr(float(share))) for share in shares]
    quotas = [count * share / sum(written) for share in written]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - quotas[i])
    for i in by_remainder[: count - sum(parts)]:
        parts[i] += 1
    return tuple(parts)


def mix_names() -> tuple[str, ...]:
    """The names of the mixes that come with potluck, sorted."""
    return _sourced.names(MIXES)


def load_mix(name_or_mapping: str | Path | Mapping[str, float]) -> Mix:
    """Read a mix.

    Args:
        name_or_mapping: a shipped name (`mix_names()`), the path of a TOML file of your own, or
            class -> share, where a class is what `load_class` takes. Relative paths in a file
            start from that file's folder.

    Raises:
        ProfileError: an unknown name, a file that cannot be used, or shares that do not sum to 1.
    """
    if isinstance(name_or_mapping, Mapping):
        return _from_mapping(name_or_mapping)
    path = _sourced.find("mix", MIXES, name_or_mapping)
    # What is shipped does not change while a process runs; what a user writes may.
    return _from_shipped(path) if path.parent == MIXES else _from_file(path)


def _from_file(path: Path) -> Mix:
    file = _sourced.read(path)
    written, _ = file.convert(_MixFile)
    classes = []
    for name in written.classes:
        try:
            classes.append(load_class(name, beside=file.path.parent))
        except ProfileError as error:
            raise file.error(("classes", name), str(error)) from error
    total = math.fsum(written.classes.values())
    if abs(total - 1.0) > SHARES_SUM_TOLERANCE:
        raise file.error(("classes",), f"[classes] shares sum to {total:g}; make that 1")
    return Mix(written.name, tuple(classes), tuple(written.classes.values()))


_from_shipped = functools.cache(_from_file)


def _from_mapping(shares: Mapping[str, float]) -> Mix:
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ProfileError(f"mix: the share of {name!r} is {share}; it must be 0 to 1")
    total = math.fsum(shares.values())
    if abs(total - 1.0) > SHARES_SUM_TOLERANCE:
        raise ProfileError(f"mix: shares sum to {total:g}; make that 1")
    return Mix("mapping", tuple(load_class(name) for name in shares), tuple(shares.values()))
