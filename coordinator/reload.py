"""Asking a running coordinator to read its file again: by SIGHUP, or through its state directory.

A file `reload` in the state directory is the question, `reload.answer` the answer: that works on
every system, for whoever may write there, and needs no port. SIGHUP asks in the same way.
"""

import contextlib
import time
from pathlib import Path
from typing import Final

from coordinator.store import StoreError
from wire.lock import AlreadyRunningError, InstanceLock

ASKED_FILE: Final = "reload"
ANSWER_FILE: Final = "reload.answer"
LOOK_EVERY_S: Final = 0.5
PATIENCE_S: Final = 15.0
_TAKEN: Final = "taken"


class ReloadDesk:
    """The running coordinator's side.

    Args:
        state_dir: its own.
    """

    def __init__(self, state_dir: Path) -> None:
        self._question = state_dir / ASKED_FILE
        self._answer = state_dir / ANSWER_FILE
        self._look_at_s = 0.0
        self._signalled = False
        # Whoever asked the process before this one is not waiting any more.
        self._question.unlink(missing_ok=True)

    def signal(self) -> None:
        """SIGHUP has come."""
        self._signalled = True

    def asked(self) -> bool:
        """Whether somebody asks; looked up now and then."""
        if self._signalled:
            self._signalled = False
            return True
        now_s = time.monotonic()
        if now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + LOOK_EVERY_S
        try:
            self._question.unlink()
        except OSError:
            return False
        return True

    def answer(self, why_not: str) -> None:
        """Say what came of it: "" if the file is taken."""
        # Whoever asked by a signal reads the log; on a full disk there is no answer.
        with contextlib.suppress(OSError):
            self._answer.write_text(why_not or _TAKEN, encoding="utf-8")


def ask_to_reload(state_dir: Path, patience_s: float = PATIENCE_S) -> None:
    """Ask the coordinator that runs there to read its file again; returns when it has.

    Raises:
        StoreError: none runs there, it does not answer, or it does not take the file.
    """
    if not state_dir.is_dir():
        raise StoreError(f"{state_dir}: no coordinator here")
    try:
        InstanceLock(state_dir).release()
    except AlreadyRunningError:
        pass
    else:
        raise StoreError(f"{state_dir}: no coordinator runs here; the next run reads the file")
    answer = state_dir / ANSWER_FILE
    answer.unlink(missing_ok=True)
    (state_dir / ASKED_FILE).touch()
    give_up_at_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_at_s:
        if answer.exists() and (said := answer.read_text(encoding="utf-8")):
            answer.unlink(missing_ok=True)
            if said != _TAKEN:
                raise StoreError(f"{said}; the old file stays in force")
            return
        time.sleep(0.05)
    (state_dir / ASKED_FILE).unlink(missing_ok=True)
    raise StoreError(f"{state_dir}: the coordinator does not answer; is it still running?")
