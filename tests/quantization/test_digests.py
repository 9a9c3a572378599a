"""Payloads are the same bytes on every machine: golden digests, and a second NumPy."""

import json
import subprocess
from pathlib import Path

import pytest
import zstandard

from tests.quantization import digests

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "digests.json"
OTHER = ROOT / ".venv-numpy1" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(
    zstandard.ZSTD_VERSION != (1, 5, 7), reason="the digests are of zstd 1.5.7's frames"
)
def test_fixed_tensors_make_the_payloads_that_they_always_made() -> None:
    """If this fails the wire has changed, or chance has: say why, and write the file anew.

    python -m tests.quantization.digests > tests/quantization/digests.json
    """
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["digests"]
    assert digests.all_digests() == kept


@pytest.mark.slow
@pytest.mark.skipif(not OTHER.exists(), reason="make setup-numpy1 makes the other environment")
def test_numpy_1_makes_the_same_payloads_as_numpy_2() -> None:
    done = subprocess.run(
        [OTHER, "-W", "error", "-m", "tests.quantization.digests"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    other = json.loads(done.stdout)
    assert other["numpy"].startswith("1.26.")
    assert other["zstandard"] == zstandard.__version__
    assert other["digests"] == digests.all_digests()


def test_every_codec_has_a_digest() -> None:
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["digests"]
    assert list(kept) == [*digests.SPECS, "accumulator", "downlink"]
