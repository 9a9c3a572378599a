import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin
from numpy.typing import NDArray

from litert_author import (
    AuthorError,
    Layer,
    Sequential,
    average_pool,
    backbone,
    conv,
    dense,
    embedding,
    export,
    flatten,
    global_average,
    gru,
    max_pool,
    relu,
)
from litert_author.program import parse
from litert_author.tflite_file import FileWriter, SubgraphWriter, options
from tests.litert_author.models import random_batch, random_state
from tests.support.litert_runtimes import litert

LAYERS: list[Layer] = [
    conv(6, 3, padding="same"),
    relu(),
    max_pool(2),
    conv(5, 3),
    relu(),
    flatten(),
    dense(9),
    relu(),
    dense(4),
]
PEOPLES = Sequential((8, 8, 1), LAYERS, seed=5)
CALIBRATION = np.random.default_rng(1).normal(size=(20, 8, 8, 1)).astype(np.float32)


@functools.cache
def given(kind: str = "float32") -> bytes:
    """A file as people have it: one example, one output."""
    artefact, tensors = PEOPLES.artefact(), PEOPLES.manifest().tensors
    if kind == "float32":
        return export(artefact, tensors)
    if kind == "weights in int8":
        return export(artefact, tensors, "int8")
    if kind == "int8":
        return export(artefact, tensors, "int8", calibration=CALIBRATION)
    return repacked(given("int8"), per_channel)


def features(file: bytes, x: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(
        [
            litert(file, [("serving_default", {"x": x[i : i + 1]})])[0]["output"]
            for i in range(len(x))
        ]
    )


def repacked(data: bytes, change: Callable[[Any], None]) -> bytes:
    model = parse(data)
    change(model)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def per_channel(model: Any) -> None:
    """The same numbers, said channel by channel, as converters say it."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if len(operator.inputs) == 3:
            for index in operator.inputs[1:]:
                tensor = graph.tensors[index]
                tensor.quantization.scale = list(tensor.quantization.scale) * int(tensor.shape[0])
                tensor.quantization.zeroPoint = [0] * int(tensor.shape[0])
                tensor.quantization.quantizedDimension = 0


KINDS = ["float32", "weights in int8", "int8", "int8 per channel"]


def head_on(file: bytes | Path, output: str | int | None = None) -> Sequential:
    return Sequential((8, 8, 1), [backbone(file, output), relu(), dense(3)], batch=5, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_sees_what_the_file_makes_of_each_example(kind: str) -> None:
    file = given(kind)
    model = head_on(file)
    assert list(model.manifest().tensors) == ["dense_1/kernel", "dense_1/bias"]
    state = random_state(model, 1)
    x = random_batch(model.artefact().info, 1)["x"]
    _, found = litert(model.artefact().data, [("set_parameters", state), ("infer", {"x": x})])
    hidden = np.maximum(features(file, x), 0)
    expected = hidden @ state["dense_1/kernel"] + state["dense_1/bias"]
    # Integers may round the other way in a batch, and per channel there is no rounding between.
    tolerance = 1e-5 if kind in {"float32", "weights in int8"} else 0.05
    assert np.abs(found["output"] - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_learns(kind: str) -> None:
    model = head_on(given(kind))
    batch = random_batch(model.artefact().info, 3)
    step = ("train", {**batch, "lr": np.float32(0.5)})
    first = model.manifest().tensors
    _, before, *_, after = litert(model.artefact().data, [("set_parameters", first), *[step] * 40])
    assert after["loss"] < 0.7 * before["loss"]


def test_the_file_is_in_the_new_one_once() -> None:
    file = given()
    assert len(head_on(file).artefact().data) <= len(file) + 20_000


@pytest.mark.slow
def test_a_path_does_and_bytes_do(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(given())
    assert head_on(tmp_path / "model.tflite").artefact() == head_on(given()).artefact()
    with pytest.raises(AuthorError, match="No such file"):
        head_on(tmp_path / "no.tflite").artefact()


@pytest.mark.slow
def test_a_tensor_in_the_middle_is_taken_by_number() -> None:
    file = given()
    made = [int(o.outputs[0]) for o in parse(file).subgraphs[0].operators]
    model = Sequential((8, 8, 1), [backbone(file, made[1]), flatten(), dense(3)], batch=5)
    # conv, max_pool: 4 x 4 of 6 channels; what comes after is not in the file.
    assert model.manifest().tensors["dense_1/kernel"].shape == (96, 3)
    assert len(model.artefact().data) < len(head_on(file).artefact().data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers",
    [
        [conv(3, 3, stride=2, padding="same"), average_pool(2), flatten(), dense(4)],
        [conv(3, 3), global_average(), dense(4)],
        [flatten(), dense(7), relu()],
    ],
)
def test_other_files(layers: list[Layer]) -> None:
    people = Sequential((8, 8, 1), [*layers, dense(4)], seed=1)
    model = head_on(export(people.artefact(), people.manifest().tensors))
    assert model.artefact().info.batch == 5


@pytest.mark.slow
def test_ids_go_through_too() -> None:
    people = Sequential((4,), [embedding(9, 5), gru(6), dense(4)], seed=1)
    file = export(people.artefact(), people.manifest().tensors)
    model = Sequential((4,), [backbone(file, values=9), dense(3)], batch=3)
    assert (model.artefact().info.x_dtype, model.artefact().info.x_values) == ("int32", 9)
    with pytest.raises(AuthorError, match="say how many there are"):
        backbone(file)


def custom(model: Any) -> None:
    kind = model.operatorCodes[0]
    kind.builtinCode, kind.customCode = Builtin.CUSTOM, b"FlexThing"
    kind.deprecatedBuiltinCode = Builtin.CUSTOM


def two_inputs(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.inputs = [*graph.inputs, *graph.inputs]


def open_shape(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = [1, -1, -1, 1]


def mixed() -> bytes:
    """A file whose answer for one example depends on the others: the mean over the batch."""
    file = FileWriter()
    sub = SubgraphWriter(file, "serving_default")
    x = sub.input("x", (1, 64), "float32")
    how = options("Reducer", keepDims=True)
    mean = sub.operator(Builtin.MEAN, [x, sub.integers([0])], (1, 64), options=how)
    less = sub.operator(Builtin.SUB, [x, mean], (1, 64), options=options("Sub"))
    sub.output("output", sub.operator(Builtin.EXP, [less], (1, 64), options=options("Exp")))
    sub.finish()
    return file.pack()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: head_on(b"no model at all"), "no .tflite file"),
        (lambda: head_on(given()[:300]), "damaged"),
        (lambda: head_on(given(), "dense"), "no operator makes a tensor 'dense'"),
        (lambda: head_on(given(), 10_000), "no operator makes tensor 10000"),
        (lambda: head_on(repacked(given(), custom)), r"CUSTOM \(FlexThing\)"),
        (lambda: head_on(repacked(given(), two_inputs)), "takes 2 inputs"),
        (lambda: head_on(repacked(given(), open_shape)), "only the batch may be open"),
        (lambda: head_on(PEOPLES.artefact().data), "inputs|outputs"),
        (lambda: Sequential((9, 9, 1), [backbone(given()), dense(2)]), r"takes \[8, 8, 1\]"),
        (
            lambda: Sequential((64,), [backbone(mixed()), dense(2)], batch=5),
            "mixes examples",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_says_why(make: Callable[[], Sequential], text: str) -> None:
    with pytest.raises(AuthorError, match=text) as caught:
        make().artefact()
    assert "\n" not in str(caught.value)
