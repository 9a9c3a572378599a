"""A thread that lets other programs go first, where a system has such threads.

Python runs one thread at a time. One that is kept from the processor by other programs while it
holds the interpreter keeps every thread of its own app waiting: docs/adr/0026. So this is off until
an owner asks for it.
"""

import os
import sys
import threading
from typing import Final

# As low as Linux knows; a thread that runs out of others' time still runs.
NICE: Final = 19


def lower_this_thread() -> bool:
    """Let every other thread and program go first; for good, because only root may raise it again.

    Linux takes a priority for each thread, macOS a background class. Elsewhere nothing happens.

    Returns:
        Whether the system took it.
    """
    system: str = sys.platform  # as text: a type checker knows only the one that it runs on
    try:
        if system == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            return True
        if system == "darwin":
            thread, background = 3, 0x1000  # PRIO_DARWIN_THREAD, PRIO_DARWIN_BG of sys/resource.h
            os.setpriority(thread, 0, background)
            return True
    except OSError:
        pass
    return False
