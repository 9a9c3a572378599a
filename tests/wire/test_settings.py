from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from wire import settings

PATH = Path("fed.toml")


class Rounds(msgspec.Struct, kw_only=True, frozen=True):
    """A table with every kind of key."""

    count: Annotated[int, msgspec.Meta(ge=1)] = 30
    quorum: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.7
    mode: Literal["sync", "async"] = "sync"
    shares: tuple[Annotated[float, msgspec.Meta(ge=0.0)], ...] = ()
    seed: int | None = None
    noisy: Literal[False] = False
    plan: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.seed == 13:
            raise ValueError("seed 13 is unlucky; take another")


class Task(msgspec.Struct):
    """A table with a key that must be there."""

    name: str


class File(msgspec.Struct):
    """A whole file."""

    rounds: Rounds = Rounds()
    task: Task | None = None
    title: str = ""


def refused(text: str) -> str:
    """The error that a text gets."""
    with pytest.raises(settings.SettingsError) as caught:
        settings.convert(File, text, PATH)
    return str(caught.value)


def test_a_file_becomes_structs_with_defaults_for_what_it_lacks() -> None:
    """Tables become Structs, integers become floats where a float is asked for."""
    made = settings.convert(File, '[rounds]\nquorum = 1\n[task]\nname = "x"\n', PATH)
    assert File(rounds=Rounds(quorum=1.0), task=Task("x")) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '# a comment\ntitle = "t"\n[rounds]\ncuont = 3\n',
            "fed.toml:4: key 'cuont' in [rounds] is unknown; did you mean 'count'?",
        ),
        ("[ruonds]\ncount = 3\n", "fed.toml:1: key 'ruonds' is unknown; did you mean 'rounds'?"),
        ("zzz = 1\n", "fed.toml:1: key 'zzz' is unknown; known: rounds, task, title"),
        (
            "[rounds]\nquorum = 1.4\n",
            "fed.toml:2: [rounds] quorum: expected float <= 1.0; it is 1.4",
        ),
        (
            '[rounds]\n\ncount = "3"\n',
            "fed.toml:3: [rounds] count: expected int, got str; it is '3'",
        ),
        (
            '[rounds]\nmode = "snyc"\n',
            "fed.toml:2: [rounds] mode: expected one of 'sync', 'async'; it is 'snyc'",
        ),
        (
            "[rounds]\nnoisy = true\n",
            "fed.toml:2: [rounds] noisy: expected false; it is true",
        ),
        (
            "[rounds]\nshares = [\n  1.0,\n  -1.0,\n]\n",
            "fed.toml:2: [rounds] shares: expected float >= 0.0 - at $[1]; it is [1.0, -1.0]",
        ),
        (
            "rounds = { quorum = nan }\n",
            "fed.toml:1: [rounds] quorum: expected finite numbers; it is nan",
        ),
        (
            "[rounds.plan]\na = inf\n",
            "fed.toml:1: [rounds] plan: expected finite numbers; it is {'a': inf}",
        ),
        ("title = ''\n\n[task]\n", "fed.toml:3: key 'name' in [task] is missing"),
        ("[rounds]\nseed = 13\n", "fed.toml:1: [rounds]: seed 13 is unlucky; take another"),
        (
            "rounds = 3\n",
            "fed.toml:1: rounds: expected object, got int; it is 3",
        ),
        (
            f"title = {['x' * 90]}\n",
            f"fed.toml:1: title: expected str, got array; it is ['{'x' * 58}...",
        ),
    ],
)
def test_an_error_is_one_line_with_file_line_key_and_what_to_write(
    text: str, expected: str
) -> None:
    """Each kind of mistake has its exact text."""
    assert expected == refused(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb =\n", 2), ("a = 1\na = 2\n", 2), ("[x\n", 1), ('a = 1\nb = """\n\n', 3)],
)
def test_a_syntax_error_names_its_line_once(text: str, line: int) -> None:
    """The parser's own line comes first, and not a second time at the end."""
    error = refused(text)
    assert error.startswith(f"fed.toml:{line}: ")
    assert "(at " not in error
    assert "\n" not in error


def test_a_file_that_cannot_be_read_is_a_settings_error(tmp_path: Path) -> None:
    """Missing files and other encodings get one line too."""
    missing = tmp_path / "no.toml"
    with pytest.raises(settings.SettingsError, match="No such file"):
        settings.load(missing)
    missing.write_bytes(b"a = '\xff'")
    with pytest.raises(settings.SettingsError, match="is not UTF-8 text"):
        settings.load(missing)


@pytest.mark.parametrize(
    ("text", "key_path", "line"),
    [
        ("a = 1\n[t]\nb = 2\n", ("t", "b"), 3),
        ("a = 1\n[t]\nb = 2\n", ("t",), 2),
        ("a = 1\n[t]\nb = 2\n", ("t", "missing"), 2),
        ("a = 1\n", ("missing",), 1),
        ("\n\na = 1\n", ("a",), 3),
        ('s = """\nb = 1\n[t]\n"""\nb = 2\n', ("b",), 5),
        ("x = [\n [1],\n [2],\n]\nb = 2\n", ("b",), 5),
        ('["t u"."v"]\n"b c" = 1\n', ("t u", "v", "b c"), 2),
        ("[t]\nu.v = 1\nu.w = 2\n", ("t", "u", "w"), 3),
        ("t = { u = 1,  v = 2 }\n", ("t", "v"), 1),
        ("[t]\nb = 1\n[u]\nb = 2\n", ("u", "b"), 4),
        ("[[t]]\nb = 1\n", ("t", "b"), 2),
        ("a = 1 # b = 2\nb = 3\n", ("b",), 2),
    ],
)
def test_a_key_is_located_as_the_parser_reads_it(
    text: str, key_path: tuple[str, ...], line: int
) -> None:
    """Strings over lines, quoted, dotted and inline keys are all found where they begin."""
    assert line == settings.locate_line(text, key_path)


@examples(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 9), max_size=8),
    st.lists(st.sampled_from(["", "# a = 1", "  "]), max_size=4),
)
def test_every_key_of_a_flat_file_is_found(values: dict[str, int], filler: list[str]) -> None:
    """Whatever comments and blank lines stand before a key, its own line is named."""
    lines: list[str] = []
    expected = {}
    for key, value in values.items():
        lines += [*filler, f"{key} = {value}"]
        expected[key] = len(lines)
    text = "\n".join(lines)
    assert expected == {key: settings.locate_line(text, (key,)) for key in values}
