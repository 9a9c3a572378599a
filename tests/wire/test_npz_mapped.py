"""Arrays where they lie: aligned, read-only, and never of a file that is not what it says."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wire import npz

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
DTYPES: Any = st.sampled_from([np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.uint8)])
ARRAYS: Any = hnp.arrays(
    DTYPES,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements={"min_value": 0, "max_value": 100},
)
MADE = {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.ones(3, np.float32)}


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mapped") / "arrays.npz"


def write(path: Path, arrays: Any, *, aligned: bool = True) -> bytes:
    buffer = io.BytesIO()
    npz.write(buffer, arrays, aligned=aligned)
    # Beside it and renamed: what somebody else has mapped stays whole.
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
    return buffer.getvalue()


@pytest.mark.slow
@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_aligned_is_the_same_file_to_numpy_and_lies_aligned(
    path: Path, arrays: dict[str, Any]
) -> None:
    data = write(path, arrays)
    mapped = npz.mapped(path)
    plain = npz.read(io.BytesIO(data))
    assert list(mapped) == list(plain) == list(arrays)
    for name, array in arrays.items():
        for found in (mapped[name], plain[name]):
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()
        assert not mapped[name].flags.writeable
        if array.size:
            assert address(mapped[name]) % npz.ALIGNMENT == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_numpy_reads_an_aligned_file(path: Path) -> None:
    write(path, MADE)
    with np.load(path) as file:
        assert all(np.array_equal(file[name], array) for name, array in MADE.items())


def test_a_file_of_before_is_read_as_well(path: Path) -> None:
    write(path, MADE, aligned=False)
    mapped = npz.mapped(path)
    assert all(np.array_equal(mapped[name], array) for name, array in MADE.items())
    turned: Any = {name: array.T for name, array in MADE.items()}
    np.savez_compressed(path, **turned)
    mapped = npz.mapped(path)
    assert all(np.array_equal(mapped[name], array.T) for name, array in MADE.items())


def test_the_order_of_the_axes_stays(path: Path) -> None:
    made = {"f": np.asfortranarray(MADE["w"])}
    write(path, made)
    np.testing.assert_array_equal(npz.mapped(path)["f"], MADE["w"])


def test_nobody_can_make_a_view_writeable(path: Path) -> None:
    write(path, MADE)
    view = npz.mapped(path)["w"]
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


@pytest.mark.slow
def test_every_flipped_byte_and_every_truncation_is_found_or_changes_nothing(path: Path) -> None:
    whole = write(path, MADE)
    for at in range(len(whole)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
            try:
                found = npz.mapped(path)
            except npz.NpzError:
                continue
            for name in found.keys() & MADE.keys():
                np.testing.assert_array_equal(found[name], MADE[name])


def test_a_pickle_is_refused_and_so_is_what_is_no_array(path: Path) -> None:
    np.savez(path, w=np.array([{}], dtype=object))
    with pytest.raises(npz.NpzError, match="Python objects"):
        npz.mapped(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(npz.NpzError, match="no array"):
        npz.mapped(path)


@pytest.mark.parametrize("shape", ["(-1,)", "(2, 99)", f"({10**30}, 0)", "(0, -3)"])
def test_a_header_that_lies_about_its_shape_is_refused(path: Path, shape: str) -> None:
    write_member(path, "<f4", shape)
    with pytest.raises(npz.NpzError):
        npz.mapped(path)


def test_arrays_of_nothing_are_as_numpy_has_them_or_refused(path: Path) -> None:
    for shape in ("(3,)", f"({10**9},)", "(0,)"):
        write_member(path, "|V0", shape)
        try:
            found = npz.mapped(path)
        except npz.NpzError:
            continue
        assert found["w"].nbytes == 0


def write_member(path: Path, dtype: str, shape: str) -> None:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", member)
