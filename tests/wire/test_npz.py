import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import npz


def zipped(members: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return io.BytesIO(file.getvalue())


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        unique=True,
        max_size=4,
    )
)
def test_arrays_of_any_name_come_back(names: list[str]) -> None:
    made = {name: np.arange(number) for number, name in enumerate(names)}
    read = npz.read(io.BytesIO(npz.to_bytes(made)))
    assert list(read) == list(made)
    for name, array in made.items():
        np.testing.assert_array_equal(read[name], array)


def test_names_that_numpy_takes_for_something_else_are_names() -> None:
    made = {
        name: np.full(2, 1.0 * n) for n, name in enumerate(("file", "allow_pickle", "x", "x.npy"))
    }
    read = npz.read(io.BytesIO(npz.to_bytes(made)))
    assert {name: array[0] for name, array in read.items()} == {
        name: array[0] for name, array in made.items()
    }


def test_numpy_reads_what_is_written_and_the_other_way_round() -> None:
    made: dict[str, Any] = {"w": np.ones((2, 0, 3), np.float16), "b": np.array(3, np.int8)}
    expected = {name: (array.shape, array.dtype) for name, array in made.items()}
    with np.load(io.BytesIO(npz.to_bytes(made))) as file:
        assert {name: (file[name].shape, file[name].dtype) for name in file.files} == expected
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **made)
        buffer.seek(0)
        assert {n: (a.shape, a.dtype) for n, a in npz.read(buffer).items()} == expected


def test_the_same_arrays_are_the_same_bytes() -> None:
    assert npz.to_bytes({"w": np.ones(3)}) == npz.to_bytes({"w": np.ones(3)})


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (io.BytesIO(b""), "is no .npz"),
        (io.BytesIO(saved(np.ones(3))), "is no .npz"),
        (zipped({"readme.txt": b"hello"}), "'readme.txt', which is no array"),
        (zipped({"x.npy": b"hello"}), "x: "),
        (zipped({"x.npy": b""}), "x: "),
        (zipped({"x.npy": saved(np.ones(9))[:-8]}), "x: "),
        (zipped({"x.npy": saved(np.ones(9)) + b"x"}), "x: there is more"),
        (
            zipped({"x.npy": saved(np.array([{}], dtype=object))}),
            "x: is an array of Python objects",
        ),
    ],
)
def test_what_is_no_file_of_arrays_says_why(file: io.BytesIO, says: str) -> None:
    file.seek(0)
    with pytest.raises(npz.NpzError, match=says):
        npz.read(file)


def test_a_name_twice_is_refused() -> None:
    file = npz.to_bytes({"x": np.ones(1), "y": np.ones(2)}).replace(b"y.npy", b"x.npy")
    with pytest.raises(npz.NpzError, match="'x' twice"):
        npz.read(io.BytesIO(file))


def test_every_damaged_byte_is_a_typed_error_or_changes_nothing() -> None:
    whole = npz.to_bytes({"x": np.arange(3, dtype=np.float32)})
    for at in range(len(whole)):
        damaged = whole[:at] + bytes((whole[at] ^ 0xFF,)) + whole[at + 1 :]
        try:
            read = npz.read(io.BytesIO(damaged))
        except npz.NpzError:
            continue
        if set(read) == {"x"}:
            np.testing.assert_array_equal(read["x"], [0, 1, 2])


def test_names_that_a_zip_would_cut_off_are_refused() -> None:
    with pytest.raises(npz.NpzError, match="NUL"):
        npz.to_bytes({"a\0b": np.zeros(1), "a\0c": np.ones(1)})
