"""Small models with every layer, every loss and every optimiser, for tests."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from litert_author import (
    Layer,
    Optimizer,
    Sequential,
    adam,
    attention,
    average_pool,
    conv,
    dense,
    embedding,
    flatten,
    gelu,
    global_average,
    gru,
    last_step,
    layer_norm,
    lora,
    max_pool,
    momentum,
    positions,
    relu,
    residual,
    sgd,
    sigmoid,
    tanh,
    transformer_block,
)
from litert_author.probe import Step
from wire import ArtefactInfo
from wire.artefact import Loss

Draw: TypeAlias = Callable[..., Any]
Arrays: TypeAlias = dict[str, NDArray[Any]]

OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adam": lambda: adam(epsilon=1e-4),
}


def size(draw: Draw, low: int, high: int) -> int:
    return int(draw(st.integers(low, high)))


def _dense(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    between = [relu, tanh, sigmoid, gelu]
    activations: list[Layer] = [draw(st.sampled_from(between))() for _ in range(size(draw, 1, 2))]
    layers = [layer for act in activations for layer in (dense(size(draw, 1, 9)), act)]
    return (size(draw, 1, 9),), [*layers, dense(size(draw, 2, 5), bias=draw(st.booleans()))]


def _conv(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    padding = draw(st.sampled_from(["same", "valid"]))
    first = conv(size(draw, 1, 4), size(draw, 1, 3), stride=size(draw, 1, 3), padding=padding)
    second = conv(size(draw, 1, 4), 2, padding="same")
    shape = (size(draw, 5, 9), size(draw, 5, 9), size(draw, 1, 3))
    return shape, [tanh(), first, relu(), second, flatten(), dense(3)]


def _pools(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    pool = draw(st.sampled_from([max_pool, average_pool]))
    end = draw(st.sampled_from([flatten, global_average]))
    shape = (size(draw, 6, 9), size(draw, 6, 9), size(draw, 1, 2))
    return shape, [conv(3, 3), pool(size(draw, 2, 3)), tanh(), end(), dense(3)]


def _embedding(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    steps = size(draw, 1, 5)
    table = embedding(size(draw, 2, 12), size(draw, 1, 5))
    end = draw(st.sampled_from([last_step, flatten, global_average]))
    return (steps,), [table, positions(), dense(4), tanh(), end(), dense(3)]


def _gru(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    shape = (size(draw, 2, 6), size(draw, 1, 4))
    sequence = bool(draw(st.booleans()))
    return shape, [gru(size(draw, 1, 5), sequence=sequence), dense(size(draw, 2, 4))]


def _layer_norm(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    shape = tuple(size(draw, 2, 6) for _ in range(size(draw, 1, 2)))
    return shape, [dense(size(draw, 3, 6)), layer_norm(), tanh(), dense(3)]


def _attention(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    heads = size(draw, 1, 3)
    shape = (size(draw, 1, 5), heads * size(draw, 1, 3))
    block = attention(heads, causal=draw(st.booleans()))
    return shape, [residual(layer_norm(), block), dense(3)]


def _transformer(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    adapter = draw(st.sampled_from([None, lora(1), lora(2, 8.0)]))
    block = transformer_block(2, 8, causal=draw(st.booleans()), adapter=adapter)
    return (size(draw, 1, 4),), [embedding(7, 6), block, layer_norm(), dense(4)]


def _lora(draw: Draw) -> tuple[tuple[int, ...], list[Layer]]:
    adapted = dense(size(draw, 3, 7), adapter=lora(size(draw, 1, 2), 3.0))
    frozen = dense(5, part=draw(st.sampled_from(["shared", "personal", "frozen"])))
    return (size(draw, 3, 6),), [frozen, tanh(), adapted, relu(), dense(3)]


LAYERS = {
    "attention": _attention,
    "conv": _conv,
    "dense": _dense,
    "embedding": _embedding,
    "gru": _gru,
    "layer_norm": _layer_norm,
    "lora": _lora,
    "pools": _pools,
    "transformer": _transformer,
}


@st.composite
def models(draw: Draw, layers: str, loss: Loss | None = None, optimizer: str = "sgd") -> Sequential:
    """A model with these layers, in some shape."""
    shape, listed = LAYERS[layers](draw)
    return Sequential(
        shape,
        listed,
        loss=loss or draw(st.sampled_from(["softmax", "sigmoid", "squared"])),
        optimizer=OPTIMIZERS[optimizer](),
        batch=size(draw, 1, 4),
        seed=size(draw, 0, 99),
    )


def random_state(model: Sequential, seed: int) -> Arrays:
    """First values that hide nothing: no zeros, no ones, and nothing that saturates."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + rng.uniform(-0.5, 0.5, array.shape)).astype(np.float32)
        for name, array in model.written.first.items()
    }


def random_batch(info: ArtefactInfo, seed: int) -> Arrays:
    """A batch whose last example is padding, unless it is the only one."""
    rng = np.random.default_rng(seed)
    x_shape, y_shape = (info.batch, *info.x_shape), (info.batch, *info.y_shape)
    x: NDArray[Any] = rng.normal(size=x_shape).astype(np.float32)
    y: NDArray[Any] = rng.uniform(0, 1, y_shape).astype(np.float32)
    if info.x_values:
        x = rng.integers(0, info.x_values, x_shape).astype(np.int32)
    if info.classes:
        y = rng.integers(0, info.classes, y_shape).astype(np.int32)
    w = np.ones(info.batch, np.float32)
    w[1:][-1:] = 0.0
    return {"x": x, "y": y, "w": w}


def variables(step: Step, state: Mapping[str, NDArray[Any]]) -> Arrays:
    """All that a step reads, as `set_parameters` leaves it."""
    found: Arrays = {f"anchor/{name}": array for name, array in state.items()} | dict(state)
    for variable, _ in step.assigned:
        found.setdefault(variable.name, np.zeros(variable.shape))
    return found
