import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from wire import Manifest, ManifestError, Schema, TensorSpec, limits, tensors_digest
from wire.errors import NotFiniteError, RemoteProtocolError, SchemaMismatchError, TooLargeError
from wire.manifest import STATISTICS, Part, check_schema, part_of

SCHEMA = Schema((TensorSpec("w", (2, 3)), TensorSpec("b", ())))


def tensors() -> dict[str, NDArray[np.float32]]:
    return {"w": np.ones((2, 3), np.float32), "b": np.array(2.0, np.float32)}


# -- the schema --------------------------------------------------------------------------------


def test_tensors_of_the_schema_pass_in_any_order() -> None:
    SCHEMA.check(tensors())
    SCHEMA.check(dict(reversed(tensors().items())))
    SCHEMA.check(SCHEMA.zeros())


@pytest.mark.parametrize(
    "change",
    [
        {"w": np.ones((3, 2), np.float32)},
        {"w": np.ones(6, np.float32)},
        {"w": np.ones((2, 3), np.float64)},
        {"w": np.ones((2, 3), np.float16)},
        {"w": np.ones((2, 3), ">f4")},
        {"w": np.ones((2, 3), np.int32)},
        {"b": np.ones(1, np.float32)},
        {"c": np.ones(1, np.float32)},
    ],
)
def test_another_name_shape_or_dtype_is_a_mismatch(change: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(SchemaMismatchError):
        SCHEMA.check(tensors() | change)


def test_a_missing_tensor_is_a_mismatch() -> None:
    with pytest.raises(SchemaMismatchError, match=r"missing \['b'\]"):
        SCHEMA.check({"w": tensors()["w"]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    bad = tensors()
    bad["w"][1, 2] = value
    with pytest.raises(NotFiniteError, match="w has"):
        SCHEMA.check(bad)


def test_only_the_shared_part_travels_in_its_order() -> None:
    specs = (
        TensorSpec("a", (2,)),
        TensorSpec("p", (3,), part="personal"),
        TensorSpec("b", (4,)),
        TensorSpec("f", (5,), part="frozen"),
    )
    assert Schema(specs).shared == Schema((specs[0], specs[2]))
    assert Schema(specs).parameters == 14
    assert Schema(specs).shared.parameters == 6


def test_sizes_are_products_of_dimensions() -> None:
    assert [TensorSpec("x", shape).size for shape in ((), (0, 4), (2, 3))] == [1, 0, 6]


# -- digests -----------------------------------------------------------------------------------


def test_the_schemas_digest_depends_on_all_of_it() -> None:
    first, second = SCHEMA.tensors
    others = [
        SCHEMA,
        Schema((second, first)),
        Schema((first,)),
        Schema(()),
        Schema((TensorSpec("v", (2, 3)), second)),
        Schema((TensorSpec("w", (3, 2)), second)),
        Schema((TensorSpec("w", (2, 3), part="frozen"), second)),
    ]
    assert len({schema.digest for schema in others}) == len(others)


@given(st.integers(0, 5), st.integers(0, 31))
def test_the_models_digest_depends_on_every_bit(at: int, bit: int) -> None:
    changed = tensors()
    changed["w"].reshape(-1).view(np.uint32)[at] ^= np.uint32(1 << bit)
    assert tensors_digest(SCHEMA, changed) != tensors_digest(SCHEMA, tensors())


def test_the_models_digest_does_not_depend_on_how_arrays_lie_in_memory() -> None:
    laid = tensors() | {"w": np.asfortranarray(tensors()["w"])}
    swapped = {name: array.astype(">f4") for name, array in tensors().items()}
    expected = tensors_digest(SCHEMA, tensors())
    assert tensors_digest(SCHEMA, laid) == expected
    assert tensors_digest(SCHEMA, swapped) == expected
    assert tensors_digest(SCHEMA, dict(reversed(tensors().items()))) == expected


# -- a schema from the network -----------------------------------------------------------------


def test_a_schema_at_its_bounds_passes() -> None:
    names = (f"t{i}" for i in range(limits.TENSORS_MAX))
    check_schema(Schema(tuple(TensorSpec(name, (1,)) for name in names)))
    check_schema(Schema((TensorSpec("n" * 64, (limits.MODEL_PARAMETERS_MAX,)),)))
    check_schema(Schema((TensorSpec("r", (1,) * limits.TENSOR_RANK_MAX),)))


@pytest.mark.parametrize(
    ("specs", "error"),
    [
        ([("x", (1,)), ("x", (1,))], SchemaMismatchError),
        ([("", (1,))], SchemaMismatchError),
        ([("x", (-1,))], SchemaMismatchError),
        ([("x", (2, -3, -4))], SchemaMismatchError),
        ([("n" * 65, (1,))], TooLargeError),
        ([("x", (1,) * 9)], TooLargeError),
        ([("x", (limits.MODEL_PARAMETERS_MAX + 1,))], TooLargeError),
        ([("x", (limits.MODEL_PARAMETERS_MAX,)), ("y", (1,))], TooLargeError),
        ([("x", (2**62,) * 8)], TooLargeError),
        ([("x", (2**62, 4, 0))], TooLargeError),
        ([(f"t{i}", ()) for i in range(limits.TENSORS_MAX + 1)], TooLargeError),
    ],
)
def test_a_schema_past_its_bounds_is_refused(
    specs: list[tuple[str, tuple[int, ...]]], error: type[RemoteProtocolError]
) -> None:
    with pytest.raises(error):
        check_schema(Schema(tuple(TensorSpec(name, shape) for name, shape in specs)))


@given(
    st.lists(
        st.tuples(st.text(max_size=3), st.lists(st.integers(-1, 2**40), max_size=4)), max_size=3
    )
)
def test_a_schema_that_passes_can_be_allocated(specs: list[tuple[str, list[int]]]) -> None:
    schema = Schema(tuple(TensorSpec(name, tuple(shape)) for name, shape in specs))
    try:
        check_schema(schema)
    except RemoteProtocolError:
        return
    assert schema.parameters <= limits.MODEL_PARAMETERS_MAX
    schema.check(schema.zeros())


# -- what a task hands over --------------------------------------------------------------------


def test_a_manifest_converts_to_float32_and_keeps_shapes_and_order() -> None:
    made: dict[str, Any] = {"z": np.arange(4.0).reshape(2, 2), "a": 1.5, "m": np.ones((0, 3))}
    manifest = Manifest(made, parts={"a": "personal"})
    assert [spec.name for spec in manifest.schema.tensors] == ["z", "a", "m"]
    assert [spec.shape for spec in manifest.schema.tensors] == [(2, 2), (), (0, 3)]
    assert [spec.part for spec in manifest.schema.tensors] == ["shared", "personal", "shared"]
    manifest.schema.check(manifest.tensors)
    assert manifest.step_flops == 30.0
    assert Manifest(made, flops_per_example=9.0).step_flops == 9.0


@pytest.mark.parametrize(
    ("made", "parts", "word"),
    [
        ({}, {}, "at least one"),
        ({"": np.ones(1)}, {}, "1 to 64"),
        ({"n" * 65: np.ones(1)}, {}, "1 to 64"),
        ({"x": np.ones((1,) * 9)}, {}, "rank 9"),
        ({"x": np.array([1.0, math.nan])}, {}, "not finite"),
        ({"x": np.array([math.inf])}, {}, "not finite"),
        ({"x": np.array([1e39])}, {}, "x: has values that do not fit float32"),
        ({"x": np.array([np.longdouble("1e400")])}, {}, "do not fit float32"),
        ({"x": np.ones(1, complex)}, {}, "x: complex128 is no dtype"),
        ({"x": np.array(["1"])}, {}, "no dtype"),
        ({"x": np.array([None])}, {}, "x: object is no dtype"),
        ({"x": np.zeros(2, "V2")}, {}, "no dtype"),
        ({"x": np.zeros(2, "M8[s]")}, {}, "no dtype"),
        ({"w": np.ones(1), "n": np.array([2**24 + 1])}, {}, "n: 16777217 is past 16777216"),
        ({"w": np.ones(1), "n": np.array([-(2**63)])}, {"n": "frozen"}, "n: 9223372036854775808"),
        ({"w": np.ones(1), "n": np.array([2**64 - 1], np.uint64)}, {}, "n: 18446744073709551615"),
        ({"w": np.ones(1), "n": np.array(3)}, {"n": "shared"}, "n: int64 cannot be shared"),
        ({"w": np.ones(1), "n": np.array([True])}, {"n": "shared"}, "n: bool cannot be shared"),
        ({"n": np.array(3)}, {}, "no tensor is shared"),
        ({"w": np.ones(1)}, {"w": "frozen"}, "no tensor is shared"),
        ({"x": np.ones(1)}, {"y": "frozen"}, "do not exist"),
        ({"x\0y": np.ones(1)}, {}, "none a NUL"),
        ({f"t{i}": np.ones(1) for i in range(limits.TENSORS_MAX + 1)}, {}, "4097 tensors"),
    ],
)
def test_a_model_that_cannot_be_carried_is_refused_with_the_tensors_name(
    made: Any, parts: Any, word: str
) -> None:
    with pytest.raises(ManifestError, match=word):
        Manifest(made, parts=parts)


def test_a_model_of_too_many_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MODEL_PARAMETERS_MAX", 10)
    with pytest.raises(ManifestError, match="11 parameters"):
        Manifest({"x": np.ones(11, np.float32)})


# -- parts by rule -----------------------------------------------------------------------------


def test_counters_and_statistics_stay_on_the_device_unless_the_task_says_otherwise() -> None:
    made: dict[str, Any] = {
        "conv.weight": np.ones(2),
        "bn.weight": np.ones(2),
        "bn.running_mean": np.zeros(2),
        "bn.running_var": np.ones(2),
        "bn.num_batches_tracked": np.array(7),
        "norm/moving_mean:0": np.zeros(2),
        "norm/moving_variance:0": np.ones(2),
        "mask": np.array([True, False]),
        "table": np.array([3, 1]),
        "head": np.ones(2),
    }
    free = Manifest(made).parts
    shared = {name for name, part in free.items() if part == "shared"}
    assert shared == {"conv.weight", "bn.weight", "head"}
    assert {part for name, part in free.items() if name not in shared} == {"personal"}
    marks: dict[str, Any] = {"bn.running_mean": "shared", "table": "frozen", "head": "personal"}
    assert Manifest(made, parts=marks).parts == {**free, **marks}
    assert Manifest(made).tensors["bn.num_batches_tracked"] == np.float32(7.0)
    assert Manifest(made).tensors["mask"].tolist() == [1.0, 0.0]


DTYPES = ("f2", "f4", "f8", "g", ">f4", "i1", "u1", "i8", "u8", "?", ">i4")


@given(
    st.text(max_size=8),
    st.sampled_from((*STATISTICS, "weight", "mean")),
    st.sampled_from(DTYPES),
    st.sampled_from((None, "shared", "personal", "frozen")),
)
def test_the_rule_in_one_line(prefix: str, ending: str, dtype: str, marked: Part | None) -> None:
    integer = np.dtype(dtype).kind in "iub"
    if integer and marked == "shared":
        with pytest.raises(ManifestError, match="cannot be shared"):
            part_of(prefix + ending, np.dtype(dtype), marked)
        return
    # A colon is Keras's: what stands behind it is not the name's.
    local = integer or (ending in STATISTICS and ":" not in prefix)
    expected = marked or ("personal" if local else "shared")
    if ":" not in prefix or integer or marked:
        assert part_of(prefix + ending, np.dtype(dtype), marked) == expected


@given(arrays(st.sampled_from(DTYPES), array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_what_a_manifest_takes_it_carries_as_the_nearest_float32(array: NDArray[Any]) -> None:
    try:
        made: dict[str, Any] = {"w": np.ones(1), "x": array}
        manifest = Manifest(made)
    except ManifestError:
        wide = array.astype(np.longdouble)
        exact = array.dtype.kind not in "iu" or (np.abs(wide) <= 2**24).all()
        with np.errstate(over="ignore"):
            assert not (np.isfinite(array.astype(np.float32)).all() and exact)
        return
    assert manifest.tensors["x"].dtype == np.float32
    assert manifest.tensors["x"].shape == array.shape
    np.testing.assert_array_equal(manifest.tensors["x"], array.astype(np.float32))
    if array.dtype.kind in "iub":
        np.testing.assert_array_equal(manifest.tensors["x"].astype(array.dtype), array)
    manifest.schema.check(manifest.tensors)


def test_bfloat16_is_carried_exactly() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.5, -3.0e38, 2.0**-130], ml_dtypes.bfloat16)
    manifest = Manifest({"x": values})
    assert manifest.parts == {"x": "shared"}
    np.testing.assert_array_equal(manifest.tensors["x"], values.astype(np.float32))
