"""TOML files that people write, and one-line errors that they can act on.

`load` reads a file and `convert` turns its text into a msgspec Struct: every key has a default or
is asked for; an unknown key, a wrong type and a value out of range are each an error with file,
line, key, and what to write instead.
"""

import difflib
import math
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from wire.errors import PotluckError

StructT = TypeVar("StructT", bound=msgspec.Struct)

_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_VALUE_CHARS_MAX = 60


class SettingsError(PotluckError):
    """A settings file that cannot be used: one line with file, line, key and what to write."""


def load(path: Path) -> str:
    """The text of a settings file.

    Raises:
        SettingsError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text") from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """TOML to a dict.

    Raises:
        SettingsError: a syntax error, with its line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _AT_LINE.search(str(error))
        last = len(text.splitlines()) or 1
        line = int(found.group(1)) if found and found.group(1) else last
        raise SettingsError(f"{path}:{line}: {_AT_LINE.sub('', str(error))}") from error


def convert(
    struct: type[StructT],
    text: str,
    path: Path,
    *,
    data: Mapping[str, Any] | None = None,
    table: tuple[str, ...] = (),
) -> StructT:
    """Read a settings file's text into a Struct; Structs inside it are its tables.

    Args:
        struct: what to make. Keys that it lacks are refused whatever its own options say, and
            NaN and infinities are refused everywhere.
        text: the file's text, also searched for the line of an error.
        path: the file's name, for errors alone.
        data: what to convert, if that is not all of `text` as it stands.
        table: where in the file `data` stands.

    Raises:
        SettingsError: a syntax error, an unknown key, a missing key, or a value of the wrong type
            or out of range.
    """
    given = parse(text, path) if data is None else data
    return _Reader(text, path).table(struct, given, table)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def locate_line(text: str, key_path: tuple[str, ...]) -> int:
    """The line on which a key stands, or the nearest table around it; 1 when neither is found.

    The text is read statement by statement, each by the TOML parser itself, so that strings over
    several lines, quoted and dotted keys and inline tables need no second grammar.
    """
    line, depth = 1, 0
    table: tuple[str, ...] = ()
    start, statement = 1, ""
    for number, row in enumerate(text.split("\n"), start=1):
        if not statement:
            start = number
        statement += row + "\n"
        try:
            keys = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # it goes on in the next row
        if statement.lstrip().startswith("["):
            table = _header(keys)
            found = _depth(keys, key_path)
        elif table == key_path[: len(table)]:
            found = len(table) + _depth(keys, key_path[len(table) :]) if keys else 0
        else:
            found = 0
        if found > depth:
            line, depth = start, found
        statement = ""
    return line


def _header(keys: dict[str, Any]) -> tuple[str, ...]:
    """The path of a lone `[table]` or `[[table]]`, from what it parses to."""
    path: list[str] = []
    inner: Any = keys
    while inner:
        if isinstance(inner, list):
            inner = inner[0]
            continue
        ((key, inner),) = inner.items()
        path.append(key)
    return tuple(path)


def _depth(keys: Any, path: tuple[str, ...]) -> int:
    """How many steps of `path` exist in `keys`."""
    for depth, step in enumerate(path):
        if isinstance(keys, list):
            keys = keys[0] if keys else {}
        if not isinstance(keys, dict) or step not in keys:
            return depth
        keys = keys[step]
    return len(path)


class _Reader:
    """One file on its way into Structs: it knows where in the text an error belongs."""

    def __init__(self, text: str, path: Path) -> None:
        self._text = text
        self._path = path

    def table(
        self, struct: type[StructT], data: Mapping[str, Any], table: tuple[str, ...]
    ) -> StructT:
        """Make one Struct from one table, key by key."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        name = f"[{'.'.join(table)}]" if table else "file"
        inside = f" in {name}" if table else ""
        for key in data:
            if key not in fields:
                hint = nearest(key, fields)
                raise self._error((*table, key), f"key {key!r}{inside} is unknown; {hint}")
        values = {}
        for key, field in fields.items():
            if key in data:
                values[field.name] = self._value(field.type, data[key], (*table, key))
            elif field.required:
                raise self._error(table, f"key {key!r}{inside} is missing")
        try:
            return struct(**values)
        except ValueError as error:  # from the Struct's own __post_init__
            raise self._error(table, f"{name}: {error}") from error

    def _value(self, hint: Any, value: Any, key_path: tuple[str, ...]) -> Any:
        inner = _struct_in(hint)
        if inner is not None and isinstance(value, dict):
            return self.table(inner, value, key_path)
        item = _item_struct_in(hint)
        if item is not None and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            return tuple(self.table(item, one, key_path) for one in value)
        try:
            if not _is_finite(value):
                raise self._wrong(key_path, "expected finite numbers", value)
            return msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            choices = _choices(hint)
            what = str(error).replace("`", "")
            if choices:
                one_of = "one of " if len(choices) > 1 else ""
                what = f"expected {one_of}{', '.join(map(_shown, choices))}"
            raise self._wrong(key_path, what[:1].lower() + what[1:], value) from error

    def _wrong(self, key_path: tuple[str, ...], what: str, value: Any) -> SettingsError:
        *table, key = key_path
        name = f"[{'.'.join(table)}] {key}" if table else key
        return self._error(key_path, f"{name}: {what}; it is {_shown(value)}")

    def _error(self, key_path: tuple[str, ...], what: str) -> SettingsError:
        return SettingsError(f"{self._path}:{locate_line(self._text, key_path)}: {what}")


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """The Struct that a type hint names, alone, annotated or in a union."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    inside = (_struct_in(option) for option in typing.get_args(hint))
    is_container = typing.get_origin(hint) in {list, tuple, dict, set, frozenset}
    return None if is_container else next((found for found in inside if found), None)


def _item_struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """The Struct that a `tuple[Struct, ...]`, an array of tables, is made of."""
    if typing.get_origin(hint) is not tuple:
        return None
    first, *rest = typing.get_args(hint)
    return _struct_in(first) if rest == [...] else None


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, alone, annotated or in a union; empty for anything else."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(choice for option in typing.get_args(hint) for choice in _choices(option))


def _shown(value: Any) -> str:
    """A value as an error shows it: briefly, and truth as TOML spells it."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _VALUE_CHARS_MAX else shown[:_VALUE_CHARS_MAX] + "..."


def _is_finite(value: Any) -> bool:
    """Whether no float in a TOML value is NaN or infinite."""
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
