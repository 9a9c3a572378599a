from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from litert_author import (
    AuthorError,
    ExportError,
    Sequential,
    adam,
    attention,
    conv,
    dense,
    embedding,
    export,
    flatten,
    gelu,
    gru,
    layer_norm,
    lora,
    max_pool,
    relu,
    residual,
)
from litert_author.program import parse
from tests.litert_author.models import Arrays, random_batch, random_state
from tests.support.litert_runtimes import TFLITE, Runtime, litert, tflite

CNN = Sequential(
    (8, 8, 1), [conv(8, 3), relu(), max_pool(2), flatten(), dense(64), relu(), dense(10)], seed=3
)
MODELS = {
    "cnn": CNN,
    "mlp": Sequential((20,), [dense(40), gelu(), dense(5)], loss="sigmoid", batch=3),
    "gru": Sequential((3,), [embedding(20, 16), gru(12), dense(20)], optimizer=adam()),
    "attention": Sequential(
        (6,), [embedding(20, 16), residual(layer_norm(), attention(4)), dense(20)], batch=2
    ),
    "lora": Sequential((20,), [dense(40, adapter=lora(2)), relu(), dense(5)], batch=4),
}
CALIBRATION = np.random.default_rng(1).normal(size=(40, 8, 8, 1)).astype(np.float32)


@pytest.fixture(
    scope="module",
    params=["ai_edge_litert", pytest.param("tflite_runtime", marks=pytest.mark.live)],
)
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "ai_edge_litert":
        yield litert
    elif not TFLITE.exists():
        pytest.skip("no .venv-tflite: make setup-tflite")
    else:
        with tflite() as run:
            yield run


def answers(runtime: Runtime, file: bytes, x: NDArray[Any]) -> NDArray[Any]:
    found = runtime(file, [("serving_default", {"x": x[i : i + 1]}) for i in range(len(x))])
    return np.concatenate([each["output"] for each in found])


def error(runtime: Runtime, model: Sequential, state: Arrays, file: bytes) -> float:
    x = random_batch(model.artefact().info, 4)["x"]
    calls = [("set_parameters", state), ("infer", {"x": x})]
    expected = runtime(model.artefact().data, calls)[1]["output"]
    return float(np.abs(answers(runtime, file, x) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_an_export_answers_as_the_trainable_file_does(name: str, runtime: Runtime) -> None:
    model = MODELS[name]
    state = random_state(model, 2)
    assert error(runtime, model, state, export(model.artefact(), state)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_int8_weights_are_near(name: str, runtime: Runtime) -> None:
    model = MODELS[name]
    state = random_state(model, 2)
    assert error(runtime, model, state, export(model.artefact(), state, "int8")) <= 0.05


def test_full_integer_is_near(runtime: Runtime) -> None:
    state = random_state(CNN, 2)
    file = export(CNN.artefact(), state, "int8", calibration=CALIBRATION)
    kinds = {int(tensor.type) for tensor in parse(file).subgraphs[0].tensors}
    assert kinds <= {0, 2, 9}  # float32 at both ends and the shape; int8 and its int32 between
    assert error(runtime, CNN, state, file) <= 0.1


def test_scales_are_per_tensor() -> None:
    state = random_state(CNN, 2)
    for shown in (None, CALIBRATION):
        file = export(CNN.artefact(), state, "int8", calibration=shown)
        for tensor in parse(file).subgraphs[0].tensors:
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                assert len(tensor.quantization.scale) == 1


@pytest.mark.slow
def test_sizes() -> None:
    layers = [conv(8, 5), relu(), max_pool(2), flatten(), dense(64), relu(), dense(10)]
    model = Sequential((28, 28, 1), layers, seed=3)
    tensors = model.manifest().tensors
    size = 4 * sum(a.size for a in tensors.values())
    assert len(export(model.artefact(), tensors)) <= 1.1 * size
    assert len(export(model.artefact(), tensors, "int8")) <= 0.3 * size


def test_a_batch_can_be_chosen() -> None:
    state = random_state(CNN, 2)
    x = random_batch(CNN.artefact().info, 4)["x"][:7]
    file = export(CNN.artefact(), state, batch=7)
    (found,) = litert(file, [("serving_default", {"x": x})])
    alone = answers(litert, export(CNN.artefact(), state), x)
    np.testing.assert_allclose(found["output"], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_same_parameters_give_the_same_bytes() -> None:
    state = random_state(CNN, 2)
    for dtype in ("float32", "int8"):
        assert export(CNN.artefact(), state, dtype) == export(CNN.artefact(), state, dtype)


def test_an_export_that_is_off_is_refused() -> None:
    state = random_state(CNN, 2)
    with pytest.raises(ExportError, match="off by"):
        export(CNN.artefact(), state, "int8", tolerance=1e-4)


def test_bad_input_is_one_line() -> None:
    state = random_state(CNN, 2)
    missing = {name: array for name, array in state.items() if name != "dense_1/bias"}
    with pytest.raises(AuthorError, match="dense_1/bias"):
        export(CNN.artefact(), missing)
    with pytest.raises(AuthorError, match="not finite"):
        export(CNN.artefact(), state | {"dense_1/bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(AuthorError, match="dtype is"):
        export(CNN.artefact(), state, "int4")  # type: ignore[arg-type]
    with pytest.raises(AuthorError, match="calibration examples are"):
        export(CNN.artefact(), state, "int8", calibration=CALIBRATION[..., 0])
    gru_state = random_state(MODELS["gru"], 2)
    with pytest.raises(AuthorError, match="not for full integer"):
        export(MODELS["gru"].artefact(), gru_state, "int8", calibration=CALIBRATION)
