"""The process between potluck and its embedded broker: it ends the broker when potluck ends.

A parent that is killed with `kill -9` runs no clean-up, and PR_SET_PDEATHSIG in the parent is tied
to the *thread* that started the child. So the broker is started by this small process, which holds
one end of a pipe to the parent: end of file means that the parent is gone, however it went. Run by
file name, isolated and without site-packages: it needs the standard library alone, and 14 MB.

What it says on stdout: the broker's process id, one line. The broker's output goes to stderr,
which the parent has made a log file.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final

STOP_S: Final = 5.0  # what the broker has to write its database before it is killed
PARENT_CHECK_S: Final = 0.5
OPEN_FILES_MAX: Final = 65_536  # a device is a file; many systems start a process with 1,024
OPEN_FILES_MAX_MACOS: Final = 10_240  # OPEN_MAX: setrlimit refuses more there


def _raise_open_files() -> None:
    """Let the broker have as many connections as the hard limit allows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 - Windows has no such module and no such limit

        wanted = OPEN_FILES_MAX_MACOS if sys.platform == "darwin" else OPEN_FILES_MAX
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _dies_with_guard() -> Callable[[], None] | None:
    """On Linux the kernel ends the broker should this process be killed; elsewhere nothing does."""
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - only Linux needs it, and it costs a third of the start

    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h

    def ask() -> None:
        prctl(set_parent_death_signal, int(signal.SIGTERM))

    return ask


def _parent_closes_stdin(parent: int) -> None:
    """Return when the parent has closed its end of the pipe or is gone."""
    if sys.platform == "win32":
        sys.stdin.buffer.read()
        return
    import select  # noqa: PLC0415 - on Windows it takes sockets only

    # A worker that the parent forked holds the pipe open too; then the parent's death shows only
    # in this process's having another parent.
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], PARENT_CHECK_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def _end(broker: subprocess.Popen[bytes]) -> None:
    """Ask the broker to stop, and insist after `STOP_S`."""
    broker.terminate()
    try:
        broker.wait(STOP_S)
    except subprocess.TimeoutExpired:
        broker.kill()
        broker.wait()


def main() -> int:
    """Start the broker, wait for the end of it or of the parent, and leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--remove", help="directory to remove at the end")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _raise_open_files()
    try:
        broker = subprocess.Popen(  # noqa: S603 - the parent's own command line
            arguments.command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            preexec_fn=_dies_with_guard(),  # noqa: PLW1509 - this process has one thread so far
        )
        try:
            print(broker.pid, flush=True)  # noqa: T201 - this is what the parent reads

            def follow_parent() -> None:
                _parent_closes_stdin(arguments.parent)
                _end(broker)

            threading.Thread(target=follow_parent, daemon=True).start()
            return broker.wait()
        finally:
            _end(broker)
    finally:
        if arguments.remove:
            shutil.rmtree(arguments.remove, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
