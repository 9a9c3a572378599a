"""The how-to page's own words run."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "author-litert.md"


@pytest.mark.slow
def test_the_pages_code_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), PAGE.name, "exec"), {})  # noqa: S102 - the page's own words
