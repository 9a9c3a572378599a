"""The page from which others write devices says what the code does, and all of it."""

import re
from pathlib import Path

import msgspec
import pytest

from quantization.codecs import CODECS
from quantization.symbols import Reader, pack, symbol_bytes_max, unpack
from tests.wire import make_vectors
from wire import errors, frames, limits
from wire.messages import MESSAGES, RESERVED_KINDS, Body, Plan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
LIMITS = {name: value for name, value in vars(limits).items() if name.isupper()}
REASONS = {
    found.reason
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, errors.RemoteProtocolError)
}
# How the page writes the defaults of fields.
WORDS = {"": "empty", b"": "empty", (): "empty", True: "true", False: "false"}


def section(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """The cells of a text's tables, without heads and rules; escaped bars are no borders."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    heads = {number - 1 for number in rules}
    return [row for number, row in enumerate(cells) if number not in heads | set(rules)]


def test_numbers_of_musts_are_unique_and_consecutive() -> None:
    numbers = [int(number) for number in re.findall(r"^- \*\*P-(\d+)\*\* ", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(re.findall(r"\*\*P-\d+\*\*", PAGE)) == len(numbers)


def test_every_rule_says_must_and_every_must_is_a_rule() -> None:
    _, _, text = PAGE.partition("## 1. Transport")
    rule = re.compile(r"^- \*\*P-\d+\*\* .+\n(?:  .+\n)*", re.MULTILINE)
    assert all("MUST" in found for found in rule.findall(text))
    assert "MUST" not in rule.sub("", text)


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_every_message_is_there_with_its_fields_in_order(kind: int) -> None:
    message = MESSAGES[kind]
    text = section(f"{kind} {message.__name__}")
    ways = {True: "Up", False: "Down", None: "Up and down"}
    assert re.match(rf"\n{ways[message.UPLINK]}[.,]", text)
    check_fields(text, message)


def test_the_plan_is_there_with_its_fields_in_order() -> None:
    check_fields(section("The plan"), Plan)


def check_fields(text: str, struct: type[Body | Plan]) -> None:
    fields = msgspec.structs.fields(struct)
    assert [row[0] for row in rows(text)] == [f"`{field.name}`" for field in fields]
    for row, field in zip(rows(text), fields, strict=True):
        if field.required:
            default = ""
        elif field.default is msgspec.NODEFAULT:
            default = "empty"  # of a map: made anew each time
        elif isinstance(field.default, bool | bytes | tuple) or field.default == "":
            default = WORDS[field.default]
        else:
            default = str(field.default)
        assert row[2].strip("`") == default, field.name


def test_no_message_is_there_that_the_code_lacks() -> None:
    headings = re.findall(r"^### (\d+) (\w+)$", PAGE, re.MULTILINE)
    assert headings == [(str(kind), MESSAGES[kind].__name__) for kind in sorted(MESSAGES)]


def test_every_reserved_kind_is_named() -> None:
    cells = [row for row in rows(section("Reserved kinds")) if row]
    pairs = {(row[at], row[at + 1]) for row in cells for at in (0, 3)} - {("", "")}
    assert pairs == {(str(kind), name) for kind, name in RESERVED_KINDS.items()}


def test_every_limit_is_there_with_its_value_and_no_other() -> None:
    table = rows(section("13. Versions and limits"))
    stated = {row[0].strip("`"): row[1] for row in table}
    assert stated == {name: f"{value:.0f}" for name, value in LIMITS.items()}
    assert all(value == int(value) for value in LIMITS.values())


def test_no_limit_is_quoted_that_does_not_exist() -> None:
    quoted = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE))
    assert quoted == set(LIMITS)


def test_every_codec_is_there_with_its_number_and_bound() -> None:
    table = {row[1].strip("`"): row for row in rows(section("10. Payloads")) if len(row) == 4}
    assert {name: int(row[0]) for name, row in table.items()} == {
        name: codec.number for name, codec in CODECS.items()
    }
    for name, row in table.items():
        start, factor = re.fullmatch(r"(?:(\d+) \+ )?(\d*)\*n\*", row[3]).groups()  # type: ignore[union-attr]
        for size in (0, 1, 1_000):
            bound = int(start or 0) + int(factor or 1) * size
            assert CODECS[name].bytes_max(size) == bound


def test_every_symbol_mode_is_there() -> None:
    modes = [row[0] for row in rows(section("10. Payloads")) if len(row) == 3 and row[0].isdigit()]
    assert modes[-4:] == ["0", "1", "2", "3"]
    assert symbol_bytes_max(0) == 5
    with pytest.raises(errors.RemoteProtocolError, match="mode 4"):
        unpack(Reader(b"\x04"), 0)
    assert pack(unpack(Reader(b"\x00"), 4)) == b"\x00"


def test_every_error_is_there_and_no_other() -> None:
    assert [row[0].strip("`") for row in rows(section("12. Errors"))] == sorted(
        REASONS, key=lambda word: PAGE.index(f"| `{word}` |", PAGE.index("## 12. Errors"))
    )


def test_the_header_is_as_long_as_the_page_says() -> None:
    table = rows(section("3. Frames"))
    offsets = [(int(row[0]), row[1]) for row in table if len(row) == 3]
    ends = [offset + int(size) for offset, size in offsets[:-1]]
    assert ends == [offset for offset, _ in offsets[1:]]
    assert offsets[-1] == (frames.HEADER_BYTES, "…")


def test_every_file_of_vectors_is_named() -> None:
    named = [row[0].strip("`") for row in rows(section("14. Vectors"))]
    assert named == list(make_vectors.all_vectors())


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert links
    assert set(links) <= anchors


def test_files_that_the_page_links_to_are_there() -> None:
    for target in re.findall(r"\]\(([^#)][^)]*)\)", PAGE):
        assert (ROOT / "docs" / target).exists()
