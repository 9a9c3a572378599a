"""TOML in which every number says where it is from: `{ value = 5.0, source = "who measured" }`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from wire import settings

StructT = TypeVar("StructT", bound=msgspec.Struct)


class ProfileError(settings.SettingsError):
    """A class or mix that cannot be used: one line with file, line, key and what to write."""


class _Sourced(msgspec.Struct):
    """One number, or one list of numbers, and its source."""

    value: Any
    # "estimate" alone is no source: say why this value and not another.
    source: Annotated[str, msgspec.Meta(pattern=r"^(?!\s*[Ee]stimate:?\s*$)\s*\S")]


@dataclass(frozen=True)
class SourcedFile:
    """A file that has been read: its text, and its path for errors."""

    path: Path
    text: str

    def convert(self, struct: type[StructT]) -> tuple[StructT, dict[str, str]]:
        """The file as a Struct, and the source of each number by its dotted key.

        Raises:
            ProfileError: the file does not fit the Struct, or a number has no source.
        """
        sources: dict[str, str] = {}
        bare: list[tuple[str, ...]] = []
        try:
            data = settings.parse(self.text, self.path)
            plain = self._without_sources(data, (), sources, bare)
            made = settings.convert(struct, self.text, self.path, data=plain)
        except settings.SettingsError as error:
            raise ProfileError(str(error)) from error
        if bare:
            raise self.error(
                bare[0],
                f"{'.'.join(bare[0])} has no source; "
                f'write {bare[0][-1]} = {{ value = ..., source = "who measured it" }}, '
                'or source = "estimate: why"',
            )
        return made, sources

    def error(self, key_path: tuple[str, ...], what: str) -> ProfileError:
        """An error at a key of this file."""
        return ProfileError(f"{self.path}:{settings.locate_line(self.text, key_path)}: {what}")

    def _without_sources(
        self,
        data: Mapping[str, Any],
        table: tuple[str, ...],
        sources: dict[str, str],
        bare: list[tuple[str, ...]],
    ) -> dict[str, Any]:
        """`data` with bare values; fills `sources`, and `bare` with what has none."""
        plain: dict[str, Any] = {}
        for key, value in data.items():
            here = (*table, key)
            if isinstance(value, dict) and ("value" in value or "source" in value):
                sourced = settings.convert(_Sourced, self.text, self.path, data=value, table=here)
                sources[".".join(here)] = sourced.source
                plain[key] = sourced.value
            elif isinstance(value, dict):
                plain[key] = self._without_sources(value, here, sources, bare)
            else:
                plain[key] = value
                if not isinstance(value, str):
                    bare.append(here)
        return plain


def read(path: Path) -> SourcedFile:
    """Read one file.

    Raises:
        ProfileError: it cannot be read.
    """
    try:
        return SourcedFile(path, settings.load(path))
    except settings.SettingsError as error:
        raise ProfileError(str(error)) from error


def find(kind: str, folder: Path, name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    """The file of a shipped name or of a path: what ends in .toml or has a slash is a path.

    Args:
        kind: "class" or "mix", for the error.
        folder: where the shipped ones are.
        name_or_path: what the user wrote.
        beside: the folder that a relative path starts from; by default the working directory.

    Raises:
        ProfileError: no shipped file has this name.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml") or "/" in name_or_path:
        return (beside or Path()) / name_or_path
    known = names(folder)
    if name_or_path not in known:
        raise ProfileError(
            f"{kind} {name_or_path!r} is unknown; {settings.nearest(name_or_path, known)}"
        )
    return folder / f"{name_or_path}.toml"


def names(folder: Path) -> tuple[str, ...]:
    """The names of the shipped files in a folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))
