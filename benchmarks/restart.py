"""How long a coordinator that was killed takes until it collects again.

From SIGKILL to the moment at which the open round is resumed and the broker hands over what devices
send: the process starts, reads its store and subscribes. Whoever supervises it restarts it at once.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.gateway_process import GatewayProcess
from benchmarks.rounds import Setting, emulated, federation_toml

KILLS: Final = 5
_PATIENCE_S: Final = 30.0
_SETTING: Final = Setting("restart", 20, 10, "endless", 17_226)


def restart_times(kills: int = KILLS) -> list[float]:
    """Seconds from each of several kills, one after the other.

    Raises:
        RoundBenchError: the coordinator did not come back.
    """
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as name:
        directory = Path(name)
        found: list[psutil.Process] = []
        with (
            GatewayProcess(directory, federation_toml(_SETTING)) as gateway,
            emulated(gateway, directory, _SETTING, found),
        ):
            gateway.wait_for_round(1, _PATIENCE_S)
            times = []
            for _ in range(kills):
                began_s = time.monotonic()
                gateway.kill()
                gateway.start()
                resumed_s = gateway.wait_for("round_resumed", began_s, _PATIENCE_S)
                heard_s = gateway.wait_for("broker_up", began_s, _PATIENCE_S)
                times.append(max(resumed_s, heard_s) - began_s)
            return times


def restart_seconds(kills: int = KILLS) -> float:
    """The median of `restart_times`."""
    return median(restart_times(kills))
