"""The tour names files and what is in them; its drawings are those of the tables."""

import ast
import re
from pathlib import Path

import pytest

from scripts.draw_machines import TOUR, drawn

ROOT = Path(__file__).parents[2]
TEXT = TOUR.read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md))`", TEXT)))
NAMED = sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)`,\s+`([\w.]+)`", TEXT)))


def test_the_drawings_are_those_of_the_tables() -> None:
    assert drawn(TEXT) == TEXT, "run `make docs`"


@pytest.mark.parametrize("path", FILES)
def test_every_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_name_is_in_the_file_that_it_stands_beside(path: str, name: str) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            members = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            names |= {f"{node.name}.{member.name}" for member in members}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    assert name in names


def test_the_tour_names_every_floor() -> None:
    for floor in ("wire", "device_profiles", "quantization", "privacy", "insight", "litert_author"):
        assert f"{floor}/" in TEXT
    for floor in ("edge_sdk", "coordinator", "fleet", "potluck", "benchmarks", "pilots"):
        assert f"{floor}/" in TEXT
