"""Damaged files end in a typed error or in equal results, and never in a dead host.

A few of each kind here; `make test-tflite` takes as many on the older interpreter, and
`make litert-mutants` 500 of each shipped model on both.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers
import msgspec
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_sdk import ArtefactRejectedError
from edge_sdk._litert_file import check_file
from edge_sdk._litert_operators import ALLOWED, CONSTANT_INPUTS
from edge_sdk.litert_files import load_manifest, save_manifest
from wire import Artefact, Manifest

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


def test_operators_are_those_of_the_schema() -> None:
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    options = {code for code in vars(schema.BuiltinOptions).values() if isinstance(code, int)}
    for code, about in ALLOWED.items():
        assert names[code] == about.name
        assert about.options in options
    for code, places in CONSTANT_INPUTS.items():
        assert all(0 <= place < ALLOWED[code].inputs_max for place in places)


def repacked(manifest: Manifest, model: Any) -> Manifest:
    """With another file, of which all that is said is right."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    data = bytes(builder.Output())
    assert manifest.artefact is not None
    info = script("litert_mutants")._info_of(
        Manifest(dict(manifest.tensors), artefact=manifest.artefact), data
    )
    return Manifest(dict(manifest.tensors), parts=manifest.parts, artefact=Artefact(data, info))


def shipped(name: str) -> tuple[Manifest, Any]:
    manifest = load_manifest(ROOT / "pilots" / "litert" / name)
    assert manifest.artefact is not None
    return manifest, schema.ModelT.InitFromPackedBuf(manifest.artefact.data, 0)


@pytest.mark.slow
def test_no_example_says_where_to_read() -> None:
    """The trial sees the probe's examples alone; a shape of others would be one it never saw."""
    tried = 0
    for name in ("digits_cnn", "next_char"):
        for code, places in CONSTANT_INPUTS.items():
            manifest, model = shipped(name)
            found: list[tuple[Any, Any]] = [
                (graph, operator)
                for graph in model.subgraphs
                for operator in graph.operators
                if model.operatorCodes[operator.opcodeIndex].builtinCode == code
            ]
            if not found or len(found[0][1].inputs) <= places[0]:
                continue
            graph, operator = found[0]
            inputs = [int(index) for index in operator.inputs]
            inputs[places[0]] = int(graph.inputs[0])
            operator.inputs = inputs
            changed = repacked(manifest, model).artefact
            assert changed is not None
            with pytest.raises(ArtefactRejectedError, match="of a shape that is computed"):
                check_file(changed.data, changed.info)
            tried += 1
    assert tried > 5


def test_who_saves_a_file_that_devices_refuse_is_told(tmp_path: Path) -> None:
    manifest, model = shipped("digits_mlp")
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.WHILE, 119
    changed = repacked(manifest, model)
    with pytest.raises(ArtefactRejectedError, match="an operator that is not allowed"):
        save_manifest(changed, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    assert manifest.artefact is not None
    lied = msgspec.structs.replace(manifest.artefact.info, batch=8)
    of_others = Manifest(dict(manifest.tensors), artefact=Artefact(manifest.artefact.data, lied))
    with pytest.raises(ArtefactRejectedError, match="its manifest says"):
        save_manifest(of_others, tmp_path / "m")
