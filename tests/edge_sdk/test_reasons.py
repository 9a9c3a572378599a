"""Every word that a device says for taking no part is in the one table, and none is there idly."""

import re
from pathlib import Path

import msgspec
import pytest

import edge_sdk
from edge_sdk.reasons import Reason
from wire.messages import Declined

SOURCES = {
    path.name: path.read_text(encoding="utf-8") for path in Path(edge_sdk.__path__[0]).glob("*.py")
}
SAYS = re.compile(
    r"(?:GateClosed\(|TrainingFailed\([^,()]+(?:\([^()]*\))?[^,()]*, |reason(?:, detail)? = "
    r'|gate_reason: str = |_NO_EXAMPLES: Final = |_give_up\(s, )"([a-z_]+)"'
)


def test_what_the_sources_say_is_in_the_table() -> None:
    said = {word for text in SOURCES.values() for word in SAYS.findall(text)}
    assert {"stopped", "deadline_passed", "base_lost", "trainer_failed", "starting"} <= said
    assert said <= set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_each_word_of_the_table_is_said_and_explained(reason: Reason) -> None:
    others = "".join(text for name, text in SOURCES.items() if name != "reasons.py")
    assert f'"{reason}"' in others or f"Reason.{reason.name}" in others
    assert reason.says
    declined = Declined(check_in=1, round=1, reason=reason)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(declined), type=Declined) == declined
