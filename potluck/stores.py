"""The store of a coordinator that is there already, for commands that look into it or change it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator import STORE_FILE, Store, StoreError


@contextmanager
def opened_store(state_dir: Path, *, read_only: bool) -> Iterator[Store]:
    """The store in a state directory, closed at the end; a coordinator may run beside it.

    Raises:
        StoreError: there is none, or it cannot be used.
    """
    path = state_dir / STORE_FILE
    if not path.exists():
        raise StoreError(
            f"{state_dir}: no coordinator here; is it the directory that"
            " `potluck coordinator init` made?"
        )
    store = Store(path, read_only=read_only)
    try:
        yield store
    finally:
        store.close()
