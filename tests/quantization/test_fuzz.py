"""What the fuzzer starts from, and whatever it has ever found, keeps the invariants."""

from types import ModuleType

import pytest

from fuzz import bundle, description, payload, symbols
from fuzz.engine import CRASHES

TARGETS = {
    module.__name__.rpartition(".")[2]: module for module in (bundle, description, payload, symbols)
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_a_fuzzer_starts_from_keeps_the_invariant(target: ModuleType) -> None:
    seeds = target.seeds()
    assert len(seeds) > 1
    for seed in seeds[:: max(1, len(seeds) // 20)]:
        target.check(seed)
        target.check(seed[: len(seed) // 2])
        target.check(seed + b"\x00")


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_fuzzer_has_found_keeps_the_invariant_now(name: str) -> None:
    for crash in sorted(CRASHES.glob(f"{name}-*")):
        TARGETS[name].check(crash.read_bytes())


def test_a_payload_that_is_read_wrongly_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariant bites: a decoder that raises what it must not is found at once."""

    def broken(*_args: object) -> None:
        raise ValueError("not a protocol error")

    monkeypatch.setattr(payload, "decode", broken)
    with pytest.raises(ValueError, match="not a protocol error"):
        payload.check(payload.seeds()[0])
