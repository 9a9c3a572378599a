"""Draw the machines from their tables into docs/tour.md, between their markers (`make docs`)."""

import re
import sys
from pathlib import Path

from coordinator import buffer
from coordinator import round as coordinator_round
from edge_sdk import session
from wire import draw

TOUR = Path(__file__).parents[1] / "docs" / "tour.md"
MACHINES = {
    "session": session.TABLE,
    "round": coordinator_round.TABLE,
    "buffer": buffer.TABLE,
}


def drawn(text: str) -> str:
    """The page with fresh drawings."""
    for name, table in MACHINES.items():
        block = f"<!-- {name} -->\n```mermaid\n{draw(table)}\n```\n<!-- /{name} -->"  # type: ignore[arg-type] # one of two records
        pattern = rf"<!-- {name} -->.*<!-- /{name} -->"
        text = re.sub(pattern, lambda _found, block=block: block, text, flags=re.DOTALL)  # type: ignore[misc] # bound at once
    return text


if __name__ == "__main__":
    before = TOUR.read_text(encoding="utf-8")
    after = drawn(before)
    TOUR.write_text(after, encoding="utf-8")
    sys.stdout.write("docs/tour.md: " + ("drawn anew\n" if after != before else "up to date\n"))
