"""Files do on real runtimes what the graph means in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litert_author import Sequential, adam, dense, gelu, reference, relu
from tests.litert_author.models import (
    LAYERS,
    OPTIMIZERS,
    Arrays,
    models,
    random_batch,
    random_state,
    variables,
)
from tests.support.litert_runtimes import TFLITE, Runtime, litert, tflite
from wire.artefact import probe_batch

# The largest relative error that is allowed, of a whole tensor's largest value.
TOLERANCE = 1e-5
# A learning rate beside which the parameters vanish: what they become is the gradient.
HUGE = float(2**20)


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


def assert_close(found: Any, expected: Any, what: str) -> None:
    size = max(float(np.abs(expected).max()), 1e-30)
    assert float(np.abs(found - expected).max()) <= TOLERANCE * size, what


def check_gradient(model: Sequential, runtime: Runtime, seed: int) -> None:
    written = model.written
    info, state = written.artefact.info, random_state(model, seed)
    batch = random_batch(info, seed)
    step = {**batch, "lr": np.float32(HUGE)}
    expected = reference.evaluate([written.train.loss, *written.train.gradients], state | batch)
    _, trained, after = runtime(
        written.artefact.data, [("set_parameters", state), ("train", step), ("get_parameters", {})]
    )
    assert_close(trained["loss"], expected[0], "loss")
    size = max(float(np.abs(by).max()) for by in expected[1:])
    for name, by in zip(state, expected[1:], strict=True):
        gradient = (state[name].astype(np.float64) - after[name]) / HUGE
        # A tensor whose gradient cancels to nothing is held to the size of all.
        error = float(np.abs(gradient - by).max()) / max(float(np.abs(by).max()), size * 0.1, 1e-30)
        assert error <= TOLERANCE, f"{name}: {error}"


@pytest.mark.parametrize("layers", sorted(LAYERS))
@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 999))
def test_gradients_are_those_of_float64(
    layers: str, runtime: Runtime, data: st.DataObject, seed: int
) -> None:
    check_gradient(data.draw(models(layers)), runtime, seed)


def states(model: Sequential, start: Arrays, numbers: Arrays, batches: list[Arrays]) -> Arrays:
    """The parameters after steps in float64."""
    step = model.written.proximal if "mu" in numbers else model.written.train
    now = variables(step, start)
    for batch in batches:
        new = reference.evaluate([v for _, v in step.assigned], {**now, **batch, **numbers})
        now |= {p.name: value for (p, _), value in zip(step.assigned, new, strict=True)}
    return {name: now[name] for name in start}


@pytest.mark.parametrize("signature", ["train", "train_proximal"])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 999))
def test_four_steps_are_those_of_float64(
    optimizer: str, signature: str, runtime: Runtime, data: st.DataObject, seed: int
) -> None:
    model = data.draw(models("dense", optimizer=optimizer))
    info, start = model.written.artefact.info, random_state(model, seed)
    numbers: Arrays = {"lr": np.asarray(0.05, np.float32)}
    if signature == "train_proximal":
        numbers |= {"mu": np.asarray(0.5, np.float32), "clip": np.asarray(0.2, np.float32)}
    batches = [random_batch(info, seed + k) for k in range(4)]
    expected = states(model, start, numbers, batches)
    calls = [(signature, batch | numbers) for batch in batches]
    *_, after = runtime(
        model.artefact().data, [("set_parameters", start), *calls, ("get_parameters", {})]
    )
    for name, value in expected.items():
        move = value - start[name]
        error = np.abs(after[name] - value).max()
        assert error <= TOLERANCE * max(float(np.abs(move).max()), float(np.abs(value).max())), name


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_evaluate_sums_what_infer_says(loss: Any, runtime: Runtime) -> None:

    model = Sequential((5,), [dense(7), relu(), dense(3)], loss=loss, batch=6, seed=1)
    state = random_state(model, 2)
    batch = random_batch(model.artefact().info, 2)
    _, inferred, evaluated = runtime(
        model.artefact().data,
        [("set_parameters", state), ("infer", {"x": batch["x"]}), ("evaluate", batch)],
    )
    z, y, w = inferred["output"].astype(np.float64), batch["y"], batch["w"]
    hidden = np.maximum(batch["x"] @ state["dense_1/kernel"] + state["dense_1/bias"], 0)
    assert_close(inferred["output"], hidden @ state["dense_2/kernel"] + state["dense_2/bias"], "z")
    if loss == "softmax":
        each = np.log(np.exp(z).sum(1)) - z[np.arange(6), y]
        right = z.argmax(1) == y
    elif loss == "sigmoid":
        each = (np.log1p(np.exp(z)) - z * y).mean(1)
        right = ((z > 0) == (y >= 0.5)).mean(1)
    else:
        each, right = np.square(z - y).mean(1), np.zeros(6)
    assert_close(evaluated["loss_sum"], (each * w).sum(), "loss_sum")
    assert evaluated["right_sum"] == pytest.approx((right * w).sum(), abs=1e-5)


def test_padding_moves_nothing(runtime: Runtime) -> None:

    model = Sequential((3,), [dense(4), gelu(), dense(2)], optimizer=adam(), batch=4, seed=1)
    state = random_state(model, 5)
    batch = random_batch(model.artefact().info, 5) | {"w": np.zeros(4, np.float32)}
    _, trained, after = runtime(
        model.artefact().data,
        [
            ("set_parameters", state),
            ("train", batch | {"lr": np.float32(1.0)}),
            ("get_parameters", {}),
        ],
    )
    assert trained["loss"] == 0.0
    for name, array in state.items():
        np.testing.assert_array_equal(after[name], array)


def test_the_probe_is_what_the_file_computes(runtime: Runtime) -> None:

    model = Sequential((5,), [dense(7), relu(), dense(3)], batch=6, seed=1)
    info = model.artefact().info
    first = dict(model.manifest().tensors)
    numbers = {"w": np.ones(6, np.float32), "lr": np.float32(info.probe.learning_rate)}
    bounds = {"mu": np.float32(info.probe.mu), "clip": np.float32(info.probe.clip)}
    batches = [probe_batch(info, k) for k in range(len(info.probe.losses))]
    plain = [("train", {"x": x, "y": y, **numbers}) for x, y in batches]
    near = [("train_proximal", {"x": x, "y": y, **numbers, **bounds}) for x, y in batches]
    answers = runtime(
        model.artefact().data,
        [
            ("set_parameters", first),
            *plain,
            ("get_parameters", {}),
            ("set_parameters", first),
            *near,
        ],
    )
    count = len(batches)
    assert [float(a["loss"]) for a in answers[1 : count + 1]] == pytest.approx(
        info.probe.losses, rel=TOLERANCE
    )
    assert [float(a["loss"]) for a in answers[count + 3 :]] == pytest.approx(
        info.probe.proximal_losses, rel=TOLERANCE
    )
    moves = [np.linalg.norm(answers[count + 1][name] - first[name]) for name in first]
    assert moves == pytest.approx(info.probe.moves, rel=1e-4)
