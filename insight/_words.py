"""Phrases of the report: counts, reasons, names of strangers made harmless."""

import unicodedata
from collections.abc import Mapping

from insight.text import (
    ranked,
)

DASH = "\N{EN DASH}"
_NAMED_MAX = 6
_CHARS_MAX = 120


def whys(*kinds: tuple[str, Mapping[str, int]]) -> str:
    """Kinds of outcome, each with its reasons, without those that did not happen."""
    return "; ".join(
        f"{kind}: {_why(reasons)}" if kind else _why(reasons)
        for kind, reasons in kinds
        if any(reasons.values())
    )


def _why(reasons: Mapping[str, int]) -> str:
    first = ranked(reasons)
    parts = [f"{count} {humane(reason)}" for reason, count in first[:_NAMED_MAX]]
    if rest := sum(count for _, count in first[_NAMED_MAX:]):
        parts.append(f"{rest} for other reasons")
    return ", ".join(parts)


def humane(reason: str) -> str:
    """A reason's snake_case as words."""
    return clean(reason).replace("_", " ")


def clean(text: str) -> str:
    """A stranger's text of bounded length, always valid UTF-8.

    What is not for showing (controls, marks that turn the direction, halves of surrogates) becomes
    a replacement character.
    """
    clipped = (
        text if len(text) <= _CHARS_MAX else text[: _CHARS_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char).startswith("C") else char
        for char in clipped
    )


def dashed(text: str) -> str:
    return DASH if text == "-" else text


def many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def of_these(count: int, whole: int, one: str, more: str) -> str:
    """How many of how many, as people say it."""
    if count == whole:
        return f"The only {one}" if whole == 1 else f"All {whole:,} {more}"
    return f"{count:,} of {many(whole, one, more)}"


def share_of(part: float, whole: float) -> float:
    return part * 100 / whole if whole else 0.0
