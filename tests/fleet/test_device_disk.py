"""The model of a device's disk does what its real files do, whatever is cut short or rots."""

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.models import FileShelf
from edge_sdk.signals import NOTHING, SealedUpdate, Spent
from fleet.device_disk import DeviceDisk, DiskShelf
from fleet.disk import Fuse, PowerCutError
from wire import Manifest, Tensors

MANIFEST = Manifest(
    {"w": np.zeros(3, np.float32), "head": np.zeros(2, np.float32)}, parts={"head": "personal"}
)
VERSIONS = st.integers(1, 4)
Script: TypeAlias = list[tuple[str, int, int]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), VERSIONS, st.just(0)),
        st.tuples(st.just("cut"), VERSIONS, st.integers(1, 3)),
        st.tuples(st.just("retain"), VERSIONS, VERSIONS),
        st.tuples(st.just("rot"), st.just(0), st.just(0)),
        st.tuples(st.just("personal"), st.integers(0, 9), st.integers(0, 3)),
    ),
    max_size=12,
)


class _CutError(Exception):
    pass


def tensors(version: int) -> Tensors:
    return {"w": np.full(3, version, np.float32)}


def cut_on_files(patch: pytest.MonkeyPatch, at: int) -> None:
    """Power goes before the temporary file, before the rename, or after it."""

    def gone(*_: object) -> None:
        raise _CutError

    if at == 1:
        patch.setattr(Path, "open", gone)
    elif at == 2:
        patch.setattr(os, "fsync", gone)
    else:
        # After the rename there is only the directory to flush.
        patch.setattr(os, "open", gone)


def on_files(shelf: FileShelf, directory: Path, step: tuple[str, int, int]) -> None:
    deed, one, two = step
    cut_at = {"cut": two, "personal": two}.get(deed, 0)
    with pytest.MonkeyPatch.context() as patch:
        if cut_at:
            cut_on_files(patch, cut_at)
        try:
            match deed:
                case "save" | "cut":
                    shelf.save(one, tensors(one))
                case "retain":
                    shelf.retain({one, two})
                case "personal":
                    shelf.save_personal({"head": np.full(2, one, np.float32)})
        except _CutError:
            pass
    if deed == "rot":
        for path in directory.glob("*.npz"):
            path.write_bytes(path.read_bytes()[:-30])


def on_the_model(shelf: DiskShelf, fuse: Fuse, step: tuple[str, int, int]) -> None:
    deed, one, two = step
    cut_at = {"cut": two, "personal": two}.get(deed, 0)
    if cut_at:
        fuse.blows_at = fuse.effects + cut_at
    try:
        match deed:
            case "save" | "cut":
                shelf.save(one, tensors(one))
            case "retain":
                shelf.retain({one, two})
            case "personal":
                shelf.save_personal({"head": np.full(2, one, np.float32)})
            case "rot":
                shelf.damage()
    except PowerCutError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
@given(script=STEPS)
def test_the_shelf_of_a_world_holds_what_files_hold(
    tmp_path_factory: pytest.TempPathFactory, script: Script
) -> None:
    directory = tmp_path_factory.mktemp("models")
    files, fuse = FileShelf(directory, MANIFEST.schema), Fuse()
    model = DiskShelf(fuse)
    for step in script:
        on_files(files, directory, step)
        on_the_model(model, fuse, step)
        for version in range(1, 5):
            real, modelled = files.load(version), model.load(version)
            assert (real is None) == (modelled is None), step
            if real is not None and modelled is not None:
                assert real["w"].tobytes() == modelled["w"].tobytes()
        real, modelled = files.personal(), model.personal()
        assert {k: v.tobytes() for k, v in real.items()} == {
            k: v.tobytes() for k, v in modelled.items()
        }
        left = {path.stem.removeprefix("model-") for path in directory.glob("*.tmp")}
        assert left == model.torn


def test_a_write_that_was_cut_is_lost_or_done_and_one_that_returned_stays() -> None:
    sealed = SealedUpdate(b"u" * 16, 3, 2, 5, b"d" * 32, 7, 1_000)
    for cut_at, kept in ((1, False), (2, True)):
        fuse = Fuse()
        disk = DeviceDisk(fuse)
        fuse.blows_at = fuse.effects + cut_at
        with pytest.raises(PowerCutError):
            disk.seal(sealed, b"12345")
        assert (disk.sealed_slice(sealed.update_id, 0, 2**30) is not None) is kept
        disk.seal(sealed, b"12345")
        assert disk.begin_boot().sealed == sealed


def test_a_full_disk_changes_nothing() -> None:
    fuse = Fuse()
    disk, shelf = DeviceDisk(fuse), DiskShelf(fuse)
    shelf.save(1, tensors(1))
    fuse.full = True
    with pytest.raises(OSError, match="no space"):
        disk.spend(1, Spent(5))
    with pytest.raises(OSError, match="no space"):
        shelf.save(2, tensors(2))
    assert (disk.spent(1), shelf.load(2)) == (NOTHING, None)
    assert shelf.load(1) is not None
