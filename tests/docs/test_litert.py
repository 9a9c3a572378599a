"""`docs/how-to/litert.md` is played, from the list of layers to the federation."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "litert.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
)


@pytest.mark.live
def test_a_stranger_comes_from_layers_to_a_federation(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "build.py"], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name for path in tmp_path.glob("bearing.*")} == {
        "bearing.tflite",
        "bearing.json",
        "bearing.npz",
    }
    shell = re.search(r"^```sh\npotluck (fleet run .*?)\n```$", PAGE, re.MULTILINE)
    assert shell is not None
    done = subprocess.run(
        [sys.executable, "-m", "potluck", *shell[1].split(), "--json"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    accuracy = [entry["accuracy"] for entry in json.loads(done.stdout)["rounds"]]
    assert accuracy[-1] > 0.85, accuracy
    assert len(FILES["bearings.py"].partition("class Bearings")[2].splitlines()) <= 12


def test_errors_that_the_page_explains_are_those_that_are_raised() -> None:
    sdk = Path(__file__).parents[2] / "edge_sdk"
    source = "".join(path.read_text() for path in sdk.glob("*litert*.py"))
    source += (sdk.parent / "wire" / "artefact.py").read_text()
    plain = re.sub(r'"\s+f?"', "", source)
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(rows) >= 9
    for row in rows:
        words = re.split(r"[\d\[\], ]*\d[\d\[\], ]*|\.\.\.|nan", row)
        for part in filter(None, (word.strip(" :;[]xy") for word in words)):
            assert part in plain, part
