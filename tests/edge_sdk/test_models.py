import errno
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.models import FileShelf
from wire import Manifest

SHAPES = {"w": (2, 3), "head": (2,), "fixed": (1,)}
MANIFEST = Manifest(
    {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    parts={"head": "personal", "fixed": "frozen"},
)
SHARED = {"w": np.full((2, 3), 5.0, np.float32)}


@pytest.fixture
def shelf(tmp_path: Path) -> FileShelf:
    return FileShelf(tmp_path, MANIFEST.schema)


def test_what_is_saved_is_loaded_bit_for_bit(shelf: FileShelf) -> None:
    shelf.save(3, SHARED)
    loaded = shelf.load(3)
    assert loaded is not None
    assert loaded["w"].tobytes() == SHARED["w"].tobytes()
    assert shelf.path(3) is not None
    assert shelf.load(4) is None
    assert shelf.path(4) is None


def test_only_retained_versions_stay(shelf: FileShelf) -> None:
    for version in (1, 2, 3):
        shelf.save(version, SHARED)
    shelf.retain({2})
    assert [shelf.load(version) is not None for version in (1, 2, 3)] == [False, True, False]


def test_what_a_cut_short_save_has_left_goes_with_the_old_versions(
    shelf: FileShelf, tmp_path: Path
) -> None:
    (tmp_path / "model-4.tmp").write_bytes(b"PK half of it")
    shelf.save(5, SHARED)
    assert shelf.load(4) is None
    shelf.retain({5})
    assert [path.name for path in tmp_path.iterdir()] == ["model-5.npz"]


@pytest.mark.parametrize("save", ["save", "save_personal", "save_residual"])
def test_a_disk_that_is_full_keeps_nothing_of_a_save(
    shelf: FileShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("edge_sdk.models.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        getattr(shelf, save)(*((4, SHARED) if save == "save" else (SHARED,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x93NUMPY junk"])
def test_a_damaged_file_counts_as_not_there(
    shelf: FileShelf, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / "model-3.npz").write_bytes(damage)
    assert shelf.load(3) is None


def test_every_truncation_of_a_file_counts_as_not_there(shelf: FileShelf, tmp_path: Path) -> None:
    shelf.save(3, SHARED)
    whole = (tmp_path / "model-3.npz").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "model-3.npz").write_bytes(whole[:size])
        assert shelf.load(3) is None


def test_another_models_file_counts_as_not_there(shelf: FileShelf) -> None:
    shelf.save(3, {"w": np.zeros((3, 2), np.float32)})
    assert shelf.load(3) is None


def test_a_pickle_in_a_file_is_never_loaded(shelf: FileShelf, tmp_path: Path) -> None:
    np.savez(tmp_path / "model-3.npz", w=np.array([{}], dtype=object))
    assert shelf.load(3) is None


def test_the_personal_part_is_kept_apart_and_checked(shelf: FileShelf, tmp_path: Path) -> None:
    assert shelf.personal() == {}
    shelf.save_personal({"head": np.ones(2, np.float32)})
    np.testing.assert_array_equal(shelf.personal()["head"], [1.0, 1.0])
    np.savez(tmp_path / "personal.npz", head=np.ones(9, np.float32), w=np.ones((2, 3)))
    assert shelf.personal() == {}


def test_what_a_codec_left_out_is_kept_until_it_is_dropped(shelf: FileShelf) -> None:
    assert shelf.residual() == {}
    shelf.save_residual(SHARED)
    assert shelf.residual()["w"].tobytes() == SHARED["w"].tobytes()
    shelf.retain({})
    assert set(shelf.residual()) == {"w"}
    shelf.save_residual({})
    shelf.save_residual({})
    assert shelf.residual() == {}


@pytest.mark.parametrize(
    "kept",
    [
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((2, 3), np.float64)},
        {"w": np.full((2, 3), np.nan, np.float32)},
        {"v": np.zeros((2, 3), np.float32)},
        {**SHARED, "head": np.zeros(2, np.float32)},
    ],
)
def test_what_was_left_out_of_another_model_is_not_added(
    shelf: FileShelf, tmp_path: Path, kept: dict[str, NDArray[np.floating]]
) -> None:
    np.savez(tmp_path / "residual.npz", **kept)  # type: ignore[arg-type] # named arrays
    assert shelf.residual() == {}


def test_models_are_looked_at_where_they_lie_and_stay_when_their_file_goes(
    shelf: FileShelf, tmp_path: Path
) -> None:
    shelf.save(3, SHARED)
    first, again = shelf.load(3), shelf.load(3)
    assert first is not None
    assert again is not None
    assert again["w"] is first["w"]
    assert not first["w"].flags.writeable
    other = FileShelf(tmp_path, MANIFEST.schema).load(3)  # another process has the same pages
    assert other is not None
    shelf.retain(())
    assert list(tmp_path.iterdir()) == []
    assert shelf.load(3) is None
    for view in (first["w"], other["w"]):
        np.testing.assert_array_equal(view, SHARED["w"])


def test_a_file_that_another_took_the_place_of_is_read_anew(shelf: FileShelf) -> None:
    shelf.save(3, SHARED)
    first = shelf.load(3)
    shelf.save(3, {"w": np.full((2, 3), 6.0, np.float32)})
    second = shelf.load(3)
    assert first is not None
    assert second is not None
    assert (first["w"][0, 0], second["w"][0, 0]) == (5.0, 6.0)


def test_values_that_are_not_finite_count_as_not_there(shelf: FileShelf) -> None:
    shelf.save(3, {"w": np.full((2, 3), np.nan, np.float32)})
    assert shelf.load(3) is None


def test_a_file_of_before_they_were_aligned_is_loaded(shelf: FileShelf, tmp_path: Path) -> None:
    np.savez(tmp_path / "model-3.npz", w=SHARED["w"])
    loaded = shelf.load(3)
    assert loaded is not None
    np.testing.assert_array_equal(loaded["w"], SHARED["w"])


def test_what_the_system_still_holds_is_dropped_the_next_time(
    shelf: FileShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.save(3, SHARED)

    def held(*_: object, **__: object) -> None:
        raise PermissionError  # Windows, while somebody has it mapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", held)
        shelf.retain(())
    assert (tmp_path / "model-3.npz").exists()
    shelf.retain(())
    assert not (tmp_path / "model-3.npz").exists()
