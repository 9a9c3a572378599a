import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litert_author import AuthorError, Sequential, reference
from litert_author.gradients import gradients
from litert_author.graph import Graph
from litert_author.ops import argmax, to_float
from tests.litert_author.models import LAYERS, Arrays, models, random_batch, random_state
from wire.artefact import Loss

STEP = 1e-6


def check(model: Sequential, seed: int) -> None:
    """The gradient along a random direction of each parameter is what the loss does along it."""
    written = model.written
    state = {k: v.astype(np.float64) for k, v in random_state(model, seed).items()}
    batch = random_batch(written.artefact.info, seed)

    def loss(point: Arrays) -> float:
        return float(reference.evaluate([written.train.loss], {**point, **batch})[0])

    found = reference.evaluate(written.train.gradients, {**state, **batch})
    size = max(float(np.abs(by).max()) for by in found)
    rng = np.random.default_rng(seed)
    for name, by in zip(state, found, strict=True):
        assert by.shape == state[name].shape
        way = np.asarray(rng.normal(size=by.shape))
        way = way / max(float(np.linalg.norm(way)), 1e-9)
        up, down = ({**state, name: state[name] + sign * STEP * way} for sign in (1, -1))
        slope = (loss(up) - loss(down)) / (2 * STEP)
        assert abs(slope - float((by * way).sum())) <= 1e-7 + 1e-6 * size, name


@pytest.mark.parametrize("layers", sorted(LAYERS.keys() - {"transformer"}))
@settings(max_examples=2)
@given(data=st.data())
def test_a_layers_gradient_is_what_the_loss_does(layers: str, data: st.DataObject) -> None:
    check(data.draw(models(layers)), 3)


@pytest.mark.slow
@pytest.mark.parametrize("layers", sorted(LAYERS))
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 999))
def test_a_layers_gradient_holds_for_many_shapes(
    layers: str, data: st.DataObject, seed: int
) -> None:
    check(data.draw(models(layers)), seed)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
@settings(max_examples=3)
@given(data=st.data())
def test_a_losss_gradient_is_what_it_does(loss: Loss, data: st.DataObject) -> None:
    check(data.draw(models("dense", loss)), 4)


def test_what_has_no_gradient_says_so() -> None:
    graph = Graph(reference.compute)
    p = graph.source("parameter", "p", (2, 3))
    best = to_float(argmax(p))
    with pytest.raises(AuthorError, match="to_float has no gradient"):
        gradients([(best, best)], [p])
