import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from litert_author import (
    AuthorError,
    Layer,
    Sequential,
    adam,
    attention,
    conv,
    dense,
    embedding,
    flatten,
    gru,
    lora,
    max_pool,
    momentum,
    positions,
    relu,
    residual,
    transformer_block,
)
from litert_author.program import parse

ROOT = Path(__file__).parents[2]
CNN = """
from litert_author import *
model = Sequential((28, 28, 1), [conv(8, 5), relu(), max_pool(2), conv(16, 5), relu(), max_pool(2),
                                 flatten(), dense(384), relu(), dense(10)], batch=20, seed=7)
data = model.artefact().data
"""
SIGNATURES = [
    "evaluate",
    "get_parameters",
    "infer",
    "set_parameters",
    "train",
    "train_proximal",
]


def cnn(**options: Any) -> Sequential:
    layers = [conv(4, 3), relu(), max_pool(2), flatten(), dense(8), relu(), dense(3)]
    return Sequential((8, 8, 1), layers, batch=4, **options)


def python(program: str) -> str:
    """What a fresh process prints."""
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return made.stdout.strip()


@pytest.mark.live
def test_two_processes_write_the_same_bytes() -> None:
    program = CNN + "import hashlib; print(hashlib.sha256(data).hexdigest())"
    namespace: dict[str, Any] = {}
    exec(CNN, namespace)  # noqa: S102 - the program above
    assert python(program) == python(program) == hashlib.sha256(namespace["data"]).hexdigest()


def test_another_seed_is_another_model_in_the_same_file() -> None:
    one, other = cnn(seed=1), cnn(seed=2)
    assert one.artefact().data == other.artefact().data
    first, second = one.manifest().tensors, other.manifest().tensors
    assert not np.array_equal(first["conv_1/kernel"], second["conv_1/kernel"])


@pytest.mark.live
def test_100k_parameters_are_written_where_no_tensorflow_can_be_loaded() -> None:
    # How long it takes is a figure of `potluck bench litert`.
    program = (
        "import sys; sys.modules.update(tensorflow=None, tf_keras=None, keras=None, torch=None)\n"
        + CNN
        + "print(sum(a.size for a in model.manifest().tensors.values()))"
    )
    assert int(python(program)) > 100_000


def test_a_file_has_the_six_signatures_and_no_first_values() -> None:
    artefact = cnn(seed=3).artefact()
    model = parse(artefact.data)
    assert sorted(s.signatureKey.decode() for s in model.signatureDefs) == SIGNATURES
    largest = max(len(b.data) for b in model.buffers if b.data is not None)
    assert largest <= 64  # shapes and numbers, no weights
    artefact.check()


def test_buffers_begin_at_multiples_of_16() -> None:
    layers = [dense(8, part="frozen"), relu(), dense(3)]
    data = Sequential((5,), layers, seed=3).artefact().data
    for buffer in parse(data).buffers:
        if buffer.data is not None and len(buffer.data) > 32:
            assert data.index(buffer.data.tobytes()) % 16 == 0


def test_the_manifest_is_what_travels() -> None:
    model = cnn(seed=3)
    manifest = model.manifest()
    info = model.artefact().info
    assert tuple(manifest.schema.tensors) == info.parameters
    assert list(manifest.tensors) == [
        "conv_1/kernel",
        "conv_1/bias",
        "dense_1/kernel",
        "dense_1/bias",
        "dense_2/kernel",
        "dense_2/bias",
    ]
    assert manifest.head == ("dense_2/kernel", "dense_2/bias")
    assert manifest.artefact is not None
    assert manifest.artefact.info.sha256 == hashlib.sha256(manifest.artefact.data).digest()
    assert (info.x_shape, info.x_dtype, info.x_values) == ((8, 8, 1), "float32", 0)
    assert (info.y_shape, info.y_dtype, info.classes) == ((), "int32", 3)


def test_flops_are_those_of_forward_and_backward() -> None:
    manifest = Sequential((64,), [dense(128), relu(), dense(10)], batch=16).manifest()
    # Forward and kernels' gradients both layers, x's gradient the second alone.
    assert manifest.step_flops == 2 * (2 * 64 * 128 + 3 * 128 * 10)


def test_parts_go_where_they_belong() -> None:
    layers = [dense(6, part="frozen"), relu(), dense(5), relu(), dense(3, part="personal")]
    model = Sequential((4,), layers, seed=1)
    manifest = model.manifest()
    assert manifest.parts == {
        "dense_2/kernel": "shared",
        "dense_2/bias": "shared",
        "dense_3/kernel": "personal",
        "dense_3/bias": "personal",
    }
    assert model.written.parts["dense_1/kernel"] == "frozen"


def test_a_frozen_constant_is_in_the_file_once() -> None:
    layers = [dense(100, part="frozen"), relu(), dense(3)]
    model = Sequential((100,), layers, seed=1)
    frozen = 4 * 100 * 100
    assert len(model.artefact().data) <= 1.1 * frozen + 20_000
    sizes = [len(b.data) for b in parse(model.artefact().data).buffers if b.data is not None]
    assert sizes.count(frozen) == 1


@pytest.mark.slow
def test_an_adapter_travels_alone_and_begins_at_zero() -> None:
    plain = [embedding(20, 32), positions(), transformer_block(4, 64), dense(20)]
    adapted = [
        embedding(20, 32, part="frozen"),
        positions(part="frozen"),
        transformer_block(4, 64, adapter=lora(1), part="frozen"),
        dense(20, adapter=lora(1)),
    ]
    whole, low = (Sequential((6,), layers, batch=4, seed=1) for layers in (plain, adapted))
    tensors = low.manifest().tensors
    assert all("lora" in name for name in tensors)
    layers_with = {name.partition("/")[0] for name in tensors}
    assert layers_with == {"attention_1", "dense_1", "dense_2", "dense_3"}
    assert all(not a.any() for name, a in tensors.items() if name.endswith("lora_b"))
    full = sum(a.size for a in whole.manifest().tensors.values())
    assert sum(a.size for a in tensors.values()) < full / 8


def test_a_model_that_is_there_goes_on_from_its_values() -> None:
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(4, 6)), rng.normal(size=6)
    model = Sequential(
        (4,),
        [dense(6, name="mine", part="frozen"), relu(), dense(2)],
        initial={"mine/kernel": kernel, "mine/bias": bias, "dense_2/bias": [1, 2]},
    )
    assert model.manifest().tensors["dense_2/bias"].tolist() == [1.0, 2.0]
    data = model.artefact().data
    assert kernel.astype(np.float32).tobytes() in data


@pytest.mark.slow
def test_constants_that_are_equal_are_one_value() -> None:
    small, large = (
        Sequential((64,), [dense(n), relu(), dense(10)], batch=16).artefact() for n in (16, 512)
    )
    assert len(large.data) == pytest.approx(len(small.data), rel=0.01)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sequential((4,), []), "at least one layer"),
        (lambda: Sequential((), [dense(2)]), "input_shape is one example's"),
        (lambda: Sequential((0,), [dense(2)]), "input_shape is one example's"),
        (lambda: Sequential((4,), [dense(2)], batch=0), "batch is 1 to"),
        (lambda: Sequential((4,), [dense(2)], seed=-1), "seed is 0 or more"),
        (lambda: Sequential((4,), [dense(2)], loss="hinge"), "loss is"),  # type: ignore[arg-type]
        (lambda: Sequential((4,), [dense(1)]), "two classes or more"),
        (lambda: Sequential((4,), [relu()]), "no parameter is shared"),
        (lambda: Sequential((4,), [dense(3, part="personal")]), "no parameter is shared"),
        (lambda: Sequential((4,), [conv(2, 3)]), r"conv_1 takes \[H, W, channels\], not \[4\]"),
        (lambda: Sequential((4, 4, 1), [conv(2, 5), dense(2)]), "a kernel of 5 does not fit in 4"),
        (lambda: Sequential((4, 4, 1), [max_pool(5), flatten(), dense(2)]), "window of 5"),
        (lambda: Sequential((4,), [dense(3), embedding(3, 3)]), "has to be the first layer"),
        (lambda: Sequential((1, 3), [gru(3), dense(2)]), "one step of time"),
        (lambda: Sequential((3, 5), [attention(2), dense(2)]), "2 heads do not divide"),
        (lambda: Sequential((4,), [residual(dense(3)), dense(2)]), "keep the shape"),
        (lambda: Sequential((4,), [dense(3, adapter=lora(3))]), "saves nothing"),
        (lambda: Sequential((4,), [dense(3, name="a"), dense(2, name="a")]), "two parameters are"),
        (lambda: Sequential((4,), [dense(3, name="a" * 70)]), "at most 64 characters"),
        (lambda: Sequential((4,), [dense(3)], initial={"dense/kernel": [1]}), "does not have"),
        (lambda: Sequential((4,), [dense(3)], initial={"dense_1/bias": [1]}), r"is \[3\], not"),
        (
            lambda: Sequential((4,), [dense(3)], initial={"dense_1/bias": [1, np.nan, 1]}),
            "not finite",
        ),
        (lambda: Sequential((4,), [dense(0)]), "units is a whole number"),
        (lambda: Sequential((4,), [dense(2.5)]), "units is a whole number"),  # type: ignore[arg-type]
        (lambda: Sequential((4, 4, 1), [conv(2, 3, padding="full")]), "padding is"),  # type: ignore[arg-type]
        (lambda: Sequential((4,), [dense(2)], optimizer=momentum(1.0)), r"beta is in \[0, 1\)"),
        (lambda: Sequential((4,), [dense(2)], optimizer=adam(epsilon=0)), "epsilon is positive"),
        (lambda: Sequential((4,), [dense(9, adapter=lora(0))]), "rank is a whole number"),
    ],
)
def test_a_wrong_model_is_one_line_that_says_so(make: Callable[[], Sequential], text: str) -> None:
    with pytest.raises(AuthorError, match=text) as caught:
        make().artefact()
    assert "\n" not in str(caught.value)


def test_first_losses_that_are_not_finite_are_refused() -> None:
    huge = {"dense_1/kernel": np.full((2, 3), 1e38), "dense_2/kernel": np.full((3, 2), 1e38)}
    model = Sequential((2,), [dense(3), dense(2)], loss="squared", initial=huge, batch=2)
    with np.errstate(all="ignore"), pytest.raises(AuthorError, match="too large"):
        model.artefact()


def test_ten_lines_make_a_model() -> None:
    begin = time.process_time()
    layers: list[Layer] = [conv(16, 3), relu(), max_pool(2), flatten(), dense(64), relu()]
    model = Sequential((8, 8, 1), [*layers, dense(10)], batch=16, seed=7)
    assert model.artefact().info.batch == 16
    assert time.process_time() - begin < 1.0
