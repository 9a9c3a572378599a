"""As much of JSON Schema as msgspec writes; what it does not know it does not pass over."""

import re
from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}
_SAID = {"title", "description", "default", "contentEncoding", "format"}


def problems(value: Any, schema: Mapping[str, Any], components: Mapping[str, Any]) -> list[str]:
    """Why a value is not one of the schema; empty when it is."""
    found: list[str] = []
    for word, bound in schema.items():
        if word in _SAID:
            continue
        found += _CHECKS[word](value, bound, schema, components)
    return found


def _ref(value: Any, bound: str, _schema: Any, components: Mapping[str, Any]) -> list[str]:
    return problems(value, components[bound.rpartition("/")[2]], components)


def _any_of(value: Any, bound: list[Any], _schema: Any, components: Mapping[str, Any]) -> list[str]:
    each = [problems(value, option, components) for option in bound]
    return [] if [] in each else [f"{value!r} is none of {bound}: {each}"]


def _type(value: Any, bound: str | list[str], *_: Any) -> list[str]:
    names = [bound] if isinstance(bound, str) else bound
    good = any(
        isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    )
    return [] if good else [f"{value!r} is no {bound}"]


def _properties(
    value: Any, bound: Mapping[str, Any], _schema: Any, components: Mapping[str, Any]
) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        f"{name}: {why}"
        for name, part in bound.items()
        if name in value
        for why in problems(value[name], part, components)
    ]


def _additional(
    value: Any, bound: Any, schema: Mapping[str, Any], components: Mapping[str, Any]
) -> list[str]:
    if not isinstance(value, dict):
        return []
    others = {name: v for name, v in value.items() if name not in schema.get("properties", {})}
    if bound is False:
        return [f"unknown {sorted(others)}"] if others else []
    return [why for v in others.values() for why in problems(v, bound or {}, components)]


def _required(value: Any, bound: list[str], *_: Any) -> list[str]:
    return [f"no {name}" for name in bound if isinstance(value, dict) and name not in value]


def _items(value: Any, bound: Any, _schema: Any, components: Mapping[str, Any]) -> list[str]:
    if not isinstance(value, list):
        return []
    return [why for item in value for why in problems(item, bound, components)]


def _number(test: Any) -> Any:
    def check(value: Any, bound: Any, *_: Any) -> list[str]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return [f"{value!r} passes {bound}"] if is_number and not test(value, bound) else []

    return check


def _text(test: Any) -> Any:
    def check(value: Any, bound: Any, *_: Any) -> list[str]:
        return [f"{value!r}: {bound}"] if isinstance(value, str) and not test(value, bound) else []

    return check


_CHECKS: dict[str, Any] = {
    "$ref": _ref,
    "anyOf": _any_of,
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "enum": lambda value, bound, *_: [] if value in bound else [f"{value!r} is not in {bound}"],
    "const": lambda value, bound, *_: [] if value == bound else [f"{value!r} is not {bound!r}"],
    "minimum": _number(lambda value, bound: value >= bound),
    "maximum": _number(lambda value, bound: value <= bound),
    "exclusiveMinimum": _number(lambda value, bound: value > bound),
    "exclusiveMaximum": _number(lambda value, bound: value < bound),
    "minLength": _text(lambda value, bound: len(value) >= bound),
    "maxLength": _text(lambda value, bound: len(value) <= bound),
    "pattern": _text(lambda value, bound: re.search(bound, value) is not None),
}
