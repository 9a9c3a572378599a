import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy import clip_l2, l2_norm
from wire import Tensors
from wire.errors import LocalProtocolError, NotFiniteError

LARGEST = float(np.finfo(np.float32).max)


def tensors_within(bound: float) -> st.SearchStrategy[Tensors]:
    elements = st.floats(-bound, bound, width=32, allow_subnormal=False)
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
    return st.dictionaries(
        st.sampled_from(["a", "b"]),
        hnp.arrays(np.float32, shapes, elements=elements),
        max_size=2,
    )


NORMS = st.floats(1e-6, 1e6)


@settings(max_examples=50)
@given(tensors_within(LARGEST), NORMS)
def test_a_clipped_update_is_within_the_bound(tensors: Tensors, clip_norm: float) -> None:
    clipped = clip_l2(tensors, clip_norm)
    assert l2_norm(clipped) <= clip_norm
    assert {name: (v.shape, v.dtype) for name, v in clipped.items()} == {
        name: (v.shape, np.dtype(np.float32)) for name, v in tensors.items()
    }


@settings(max_examples=50)
@given(tensors_within(100.0), NORMS)
def test_clipping_keeps_the_direction_and_uses_the_bound(
    tensors: Tensors, clip_norm: float
) -> None:
    norm = l2_norm(tensors)
    factor = min(1.0, clip_norm / norm) if norm else 1.0
    for name, values in clip_l2(tensors, clip_norm).items():
        assert np.allclose(values, tensors[name] * factor, rtol=1e-5, atol=1e-37)


@settings(max_examples=50)
@given(tensors_within(100.0), NORMS)
def test_clipping_twice_is_clipping_once(tensors: Tensors, clip_norm: float) -> None:
    once = clip_l2(tensors, clip_norm)
    twice = clip_l2(once, clip_norm)
    assert all(once[name].tobytes() == twice[name].tobytes() for name in once)


def test_a_small_update_is_returned_to_the_bit() -> None:
    tensors = {"w": np.array([0.3, -0.4], np.float32)}
    assert clip_l2(tensors, 1.0)["w"].tobytes() == tensors["w"].tobytes()


def test_the_input_is_never_changed() -> None:
    tensors = {"w": np.array([30.0, -40.0], np.float32)}
    clip_l2(tensors, 1.0)
    assert tensors["w"].tolist() == [30.0, -40.0]


def test_the_norm_is_over_all_tensors_together() -> None:
    tensors = {"a": np.array([[3.0]], np.float32), "b": np.asarray(4.0, np.float32)}
    assert l2_norm(tensors) == 5.0
    assert l2_norm({}) == 0.0
    assert l2_norm({"none": np.zeros((0, 3), np.float32)}) == 0.0


def test_values_whose_squares_leave_float32_have_a_norm() -> None:
    assert math.isclose(l2_norm({"w": np.full(4, 1e38, np.float32)}), 2e38, rel_tol=1e-6)


def test_an_exploded_update_is_within_the_bound_too() -> None:
    """The factor is below float32's normal range: its rounding must not lift the norm."""
    for size in (1_000, 3_333, 20_000):
        clipped = clip_l2({"w": np.full(size, LARGEST, np.float32)}, 1.0)
        assert 0.999 < l2_norm(clipped) <= 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_cannot_be_clipped(bad: float) -> None:
    with pytest.raises(NotFiniteError):
        clip_l2({"a": np.zeros(2, np.float32), "b": np.array([1.0, bad], np.float32)}, 1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, -math.inf])
def test_a_bound_that_is_none_is_our_own_mistake(clip_norm: float) -> None:
    with pytest.raises(LocalProtocolError, match="clip norm"):
        clip_l2({"w": np.ones(1, np.float32)}, clip_norm)
