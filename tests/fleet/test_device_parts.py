"""The model of half-downloaded files holds what real files hold, whatever is cut short or rots."""

import hashlib
import random
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.parts import PartFile, PartFiles, SpoiledPartError
from fleet.device_disk import DiskPart, DiskParts
from fleet.disk import Fuse, PowerCutError
from wire.chunks import held, split
from wire.messages import ModelOffer

CHUNK = 40
COUNT = 5
VERSIONS = st.integers(1, 4)
Script: TypeAlias = list[tuple[str, int, int]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), VERSIONS, st.just(0)),
        st.tuples(st.just("put"), VERSIONS, st.integers(0, COUNT - 1)),
        st.tuples(st.just("cut"), VERSIONS, st.integers(0, COUNT - 1)),
        st.tuples(st.just("release"), VERSIONS, st.just(0)),
        st.tuples(st.just("retain"), VERSIONS, VERSIONS),
        st.tuples(st.just("rot"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


def payload(version: int) -> bytes:
    return random.Random(version).randbytes(COUNT * CHUNK - 3)


def offer_of(version: int) -> ModelOffer:
    digest = hashlib.sha256(payload(version)).digest()
    return ModelOffer(digest[:16], version, -1, COUNT * CHUNK - 3, digest, CHUNK, b"m" * 32)


Found: TypeAlias = tuple[ModelOffer, PartFile | DiskPart] | None


def play(parts: PartFiles | DiskParts, step: tuple[str, int, int], cut: object) -> None:
    deed, version, other = step
    try:
        found: Found = parts.find(version) if version else None
    except SpoiledPartError:
        found = None
    match deed:
        case "begin":
            parts.begin(offer_of(version))
        case "retain":
            parts.retain({version, other})
        case "release" if found is not None:
            found[1].release()
        case "put" if found is not None:
            found[1].put(other * CHUNK, split(payload(version), CHUNK, other))
        case "cut" if found is not None:
            cut(found[1], version, other)  # type: ignore[operator]


def look(parts: PartFiles | DiskParts, version: int) -> list[int] | None:
    found: Found = parts.find(version)
    if found is None:
        return None
    offer, part = found
    assert offer == offer_of(version)
    return list(held(part.received, COUNT))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
@given(script=STEPS)
def test_parts_of_a_world_hold_what_files_hold(
    tmp_path_factory: pytest.TempPathFactory, script: Script
) -> None:
    directory: Path = tmp_path_factory.mktemp("models")
    files, fuse = PartFiles(directory), Fuse()
    model = DiskParts(fuse)

    def cut_file(part: PartFile, version: int, index: int) -> None:
        """The bytes are written, and then there is no power for the checksum."""
        if index in held(part.received, COUNT):
            return  # the same bytes once more change nothing
        with part.path.open("r+b") as file:
            file.seek(part.size_bytes - len(payload(version)) + index * CHUNK)
            file.write(split(payload(version), CHUNK, index))

    def cut_model(part: DiskPart, version: int, index: int) -> None:
        fuse.blows_at = fuse.effects + 2
        with pytest.raises(PowerCutError):
            part.put(index * CHUNK, split(payload(version), CHUNK, index))

    for step in script:
        play(files, step, cut_file)
        play(model, step, cut_model)
        if step[0] == "rot":
            for path in directory.iterdir():
                size = len(path.read_bytes())
                head = path.read_bytes()[: size - COUNT * CHUNK + 3 - 4 * COUNT]
                path.write_bytes(head.ljust(size, b"\0"))
            model.damage()
        for version in range(1, 5):
            assert look(files, version) == look(model, version), step
