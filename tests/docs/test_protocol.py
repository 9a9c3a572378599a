"""The page from which others write devices says what the code does, and all of it."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from quantization import CODEC_NAMES, payload_bytes_max
from quantization.blocks import blocks_of
from quantization.codecs import CODECS, FLOATS, Codec
from quantization.stages import Stage
from quantization.symbols import BYTES, GAPS, GAPS16, SIGNS, WORDS, ZERO, Packed, pack, unpack
from tests.wire import make_vectors
from wire import Schema, TensorSpec, errors, frames, limits
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
DEFAULTS = {"": "empty", b"": "empty", (): "empty", True: "true", False: "false"}


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
            default = DEFAULTS[field.default]
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


def stage_of(codec: Codec) -> Stage:
    stage = FLOATS[codec.number][1] if codec.number in FLOATS else codec.stage
    assert stage is not None
    return stage


def test_every_codec_is_there_with_its_number_and_parameters() -> None:
    table = {row[1].strip("`"): row for row in rows(section("10. Payloads")) if len(row) == 4}
    assert {name: int(row[0]) for name, row in table.items()} == {
        name: codec.number for name, codec in CODECS.items()
    }
    types = {"bfloat16": "b", "float32": "f"}
    for name, row in table.items():
        stated = "" if row[2] == "none" else row[2]
        assert "".join(types[word.split()[0]] for word in stated.split(", ") if word) == (
            stage_of(CODECS[name]).parameters
        )
        assert ("chunk" in row[3]) == stage_of(CODECS[name]).scaled


def test_every_codec_is_there_with_how_it_is_written() -> None:
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(section("Writing"))))
    assert named == [
        "raw",
        "f16",
        "q8",
        "q4",
        "ecq_sr",
        "ecq",
        "eden1",
        "eden",
        "topk_sign",
        "auto",
    ]
    assert set(named) == set(CODEC_NAMES)


def test_every_symbol_mode_is_there_and_no_other() -> None:
    modes = [int(row[0]) for row in rows(section("Symbols"))]
    assert modes == [ZERO, GAPS, GAPS16, SIGNS, BYTES, WORDS]
    with pytest.raises(errors.RemoteProtocolError, match="mode 6"):
        unpack(modes[-1] + 1, b"", b"", 0)


def test_the_example_of_symbols_is_right() -> None:
    symbols, mode, squeezed, plain = re.search(  # type: ignore[union-attr]
        "^The symbols ([0-9 \u2212]+) are mode (\\d), squeezed `(\\w+)`, plain `(\\w+)`\\.$",
        section("Symbols"),
        re.MULTILINE,
    ).groups()
    packed = pack(
        np.array([int(text.replace("\u2212", "-")) for text in symbols.split()], np.int16)
    )
    assert packed == Packed(int(mode), bytes.fromhex(squeezed), bytes.fromhex(plain))


def test_the_constants_of_chance_are_there() -> None:
    text = section("Rotated tensors")
    assert {int(word, 16) for word in re.findall(r"`([0-9a-f]{16})`", text)} == {
        0xD2E7470EE14C6C93,
        0xCA5A826395121157,
        0x9E3779B97F4A7C15,
        0xBB67AE8584CAA73B,
        0x16554D9ECA36314C,
    }


@pytest.mark.parametrize(
    "sizes", [(), (0,), (1,), (300, 7), (65_536,), (65_537, 9, 0), (40_000,) * 3]
)
def test_the_largest_payload_is_what_the_page_says(sizes: tuple[int, ...]) -> None:
    made = Schema(tuple(TensorSpec(f"t{i}", (size,)) for i, size in enumerate(sizes)))
    largest = 14 + 9 * len(sizes)
    for block in blocks_of(made):
        n = block.size
        s, p = 3 * n + n // 127 + 1, -(-n // 8)
        k = sum(each.size if each.size < 64 else max(1, each.size // 256) for each in block.pieces)
        largest += 16 + max(s + p + k, 4 * n)
    assert payload_bytes_max(made) == largest


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
