"""Damaged files end in a typed error or in equal results, and never in a dead host.

A few of each kind here; `make test-tflite` takes as many on the older interpreter, and
`make litert-mutants` 500 of each shipped model on both.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.live  # forks
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "next_char"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_mutants_are_refused_or_the_same(name: str, tmp_path: Path) -> None:
    mutants = script("litert_mutants")
    mutants.make(name, tmp_path, 24, 5)
    outcome = mutants.run(name, tmp_path)
    assert outcome["bad"] == []
    assert sum(outcome["counts"].values()) == 24


@pytest.mark.slow
def test_the_shipped_files_are_what_their_definitions_make(tmp_path: Path) -> None:
    """Byte for byte: whoever changes the builder or a definition runs `make litert-models`."""
    models = script("litert_models")
    for name in models.MODELS:
        models.save_manifest(models.built(name), tmp_path / name)
        for suffix in (".tflite", ".npz", ".json"):
            made = (tmp_path / f"{name}{suffix}").read_bytes()
            assert made == (models.HERE / f"{name}{suffix}").read_bytes(), name + suffix
