"""One file out of a running coordinator, and a state directory out of that file."""

import hashlib
import io
import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from coordinator import (
    STORE_FILE,
    Store,
    StoreError,
    init_state,
    load_identity,
    make_backup,
    restore_backup,
)
from coordinator.config import Rounds
from coordinator.epochs import Numbering
from coordinator.store import SCHEMA_VERSION
from tests.support.loopback import Loopback
from wire import Ed25519, SystemSecrets

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=600.0)
NOW_S = 1_800_000_000.0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    init_state(tmp_path / "state", SystemSecrets())
    return tmp_path / "state"


@pytest.fixture
def backup(state: Path, tmp_path: Path) -> Path:
    make_backup(state, tmp_path / "backup", NOW_S)
    return tmp_path / "backup"


def test_keys_and_store_come_back(state: Path, backup: Path, tmp_path: Path) -> None:
    kept = restore_backup(backup, tmp_path / "again", NOW_S + 9.0)
    assert kept.made_at == NOW_S
    for name in ("coordinator.key", "ca.key", "ca.pem"):
        assert (tmp_path / "again" / name).read_bytes() == (state / name).read_bytes()
    for path in (tmp_path / "again").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    keys = [load_identity(tmp_path / d, Ed25519()).signer.public_key for d in ("state", "again")]
    assert keys[0] == keys[1]
    store = Store(tmp_path / "again" / STORE_FILE)
    assert Numbering.read(store).epoch == kept.epoch > 0
    store.close()


def test_it_is_its_owners_alone_and_overwrites_nothing(
    state: Path, backup: Path, tmp_path: Path
) -> None:
    assert backup.stat().st_mode & 0o077 == 0
    before = backup.read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        make_backup(state, backup, NOW_S)
    assert backup.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(StoreError, match="no coordinator here"):
        make_backup(tmp_path, tmp_path / "other", NOW_S)
    with pytest.raises(StoreError, match="nowhere"):
        make_backup(state, tmp_path / "nowhere" / "file", NOW_S)


def test_restoring_overwrites_nothing(backup: Path, tmp_path: Path, state: Path) -> None:
    with pytest.raises(StoreError, match="is not empty"):
        restore_backup(backup, state, NOW_S)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not empty"):
        restore_backup(backup, tmp_path / "file", NOW_S)
    (tmp_path / "empty").mkdir()
    restore_backup(backup, tmp_path / "empty", NOW_S)


def test_at_any_moment_of_a_running_federation_it_is_one_moment(tmp_path: Path) -> None:
    """Taken beside an open connection that goes on writing, and always whole."""
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    state, taken = tmp_path / "coordinator", 0
    for step in range(400):
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)
        if step % 20:
            continue
        file, again = tmp_path / f"backup-{step}", tmp_path / f"again-{step}"
        made = make_backup(state, file, loopback.now_s)
        restore_backup(file, again, loopback.now_s)
        store, original = Store(again / STORE_FILE), loopback.coordinator.store
        assert store.updates() == original.updates()
        assert store.latest_version() == made.version == original.latest_version()
        here, there = store.unfinished_round(), original.unfinished_round()
        assert (here and here[1]) == (there and there[1]), "what is receipted and not decided"
        store.close()
        taken += 1
        if loopback.coordinator.finished:
            break
    assert taken >= 5


def altered(backup: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The same archive with parts changed, or left out."""
    other = backup.with_name("altered")
    with tarfile.open(backup) as old, tarfile.open(other, "w") as new:
        for member in old.getmembers():
            data = old.extractfile(member)
            assert data is not None
            content = change(member.name, data.read())
            if content is not None:
                info = tarfile.TarInfo(member.name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    return other


def flip(name: str) -> Callable[[str, bytes], bytes]:
    def change(other: str, data: bytes) -> bytes:
        return data[:-1] + bytes((data[-1] ^ 1,)) if other == name else data

    return change


def without(name: str) -> Callable[[str, bytes], bytes | None]:
    return lambda other, data: None if other == name else data


DAMAGE: dict[str, Callable[[str, bytes], bytes | None]] = {
    **{f"flipped {n}": flip(n) for n in (STORE_FILE, "coordinator.key", "ca.pem")},
    **{f"flipped {n}": flip(n) for n in ("manifest.json", "manifest.sha256")},
    **{f"without {n}": without(n) for n in (STORE_FILE, "coordinator.key", "manifest.json")},
    "truncated store": lambda n, data: data[:1_000] if n == STORE_FILE else data,
    "huge manifest": lambda n, data: data + bytes(100_000) if n == "manifest.json" else data,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    backup: Path, tmp_path: Path, damage: str
) -> None:
    with pytest.raises(StoreError, match=r"damaged|cannot be restored"):
        restore_backup(altered(backup, DAMAGE[damage]), tmp_path / "again", NOW_S)
    assert not (tmp_path / "again").exists()


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(3_000))
    for name in ("noise", "nowhere"):
        with pytest.raises(StoreError, match="cannot be restored"):
            restore_backup(tmp_path / name, tmp_path / "again", NOW_S)
        assert not (tmp_path / "again").exists()


def test_a_half_written_backup_is_refused_wherever_it_ends(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    for size in range(0, len(whole) - 12_000, 4_096):
        (tmp_path / "half").write_bytes(whole[:size])
        with pytest.raises(StoreError):
            restore_backup(tmp_path / "half", tmp_path / "again", NOW_S)


def test_a_backup_cannot_write_outside_its_directory(backup: Path, tmp_path: Path) -> None:
    with tarfile.open(backup, "a") as archive:
        info = tarfile.TarInfo("../escaped")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    restore_backup(backup, tmp_path / "again", NOW_S)
    assert not (tmp_path / "escaped").exists()


def test_a_backup_of_a_newer_potluck_is_refused(backup: Path, tmp_path: Path) -> None:
    heads: list[bytes] = []

    def newer(name: str, data: bytes) -> bytes:
        if name == "manifest.json":
            manifest = msgspec.json.decode(data)
            heads.append(msgspec.json.encode({**manifest, "schema": SCHEMA_VERSION + 1}))
            return heads[0]
        if name == "manifest.sha256":
            return hashlib.sha256(heads[0]).hexdigest().encode()
        return data

    with pytest.raises(StoreError, match="newer potluck"):
        restore_backup(altered(backup, newer), tmp_path / "again", NOW_S)
    assert not (tmp_path / "again").exists()


def test_a_restored_state_restored_again_from_its_own_backup_goes_on_higher(
    backup: Path, tmp_path: Path
) -> None:
    first = restore_backup(backup, tmp_path / "one", NOW_S)
    make_backup(tmp_path / "one", tmp_path / "second", NOW_S)
    assert restore_backup(tmp_path / "second", tmp_path / "two", NOW_S).epoch > first.epoch
    assert restore_backup(backup, tmp_path / "three", NOW_S, epoch=999_999).epoch == 999_999
    with sqlite3.connect(tmp_path / "three" / STORE_FILE) as database:
        (epoch,) = database.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    assert epoch == b"999999"
