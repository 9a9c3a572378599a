"""Runs a target under atheris, a coverage-guided fuzzer; its corpus is in out/fuzz."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CRASHES = ROOT / "fuzz" / "crashes"


def run(argv: list[str], check: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Fuzz until the options say that it is enough, or the invariant is broken.

    What breaks it is written to fuzz/crashes, where `tests/quantization/test_fuzz.py` finds it.
    """
    import atheris  # noqa: PLC0415 - an extra: the invariants are tested without it

    name = Path(argv[0]).stem
    corpus = ROOT / "out" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    CRASHES.mkdir(exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.instrument_all()
    prefix = f"-artifact_prefix={CRASHES / name}-"
    atheris.Setup([argv[0], str(corpus), prefix, "-max_len=4096", *argv[1:]], check)
    atheris.Fuzz()
