"""An upload cut at half, the device killed: how many bytes go up in all before it is settled.

The device's way to its broker is a relay that breaks once half of the payload has passed. Then the
process gets SIGKILL, the relay is mended, and a new process goes on from the same state directory.
Counted is what the device's kernel has sent, as far as the relay could read it: what was under way
when the connection broke included.
"""

from typing import Any, Final

from benchmarks.footprint_process import federation
from coordinator import STORE_FILE, Store

LIMIT: Final = 1.1
_CUT_WITHIN_S: Final = 60.0
_TOML: Final = """
[federation]
name = "resume"
task = "benchmarks.footprint_device:eight_megabytes"
[rounds]
count = 1
cohort = 1
quorum = 1.0
deadline_s = 600.0
[uplink]
codec = "raw"
"""
_PAYLOAD_BYTES: Final = 8_000_000


def resume_table(*, quick: bool = False) -> dict[str, Any]:  # noqa: ARG001 - seconds as it is
    """Measure it.

    Returns:
        `bytes_payload`, `bytes_sent_total`, their `ratio` and its `limit`.

    Raises:
        RoundBenchError: a process ended, or the update was not settled.
    """
    with federation(_TOML) as running:
        relay = running.relay
        with running.device("eight_megabytes") as device:
            device.wait_for("started")
            before = relay.up_bytes
            relay.cut_after(before + _PAYLOAD_BYTES // 2)
            relay.wait_for_cut(_CUT_WITHIN_S)
            device.kill()
        relay.mend()
        with running.device("eight_megabytes") as device:
            device.wait_for("settled")
            sent = relay.up_bytes - before
        store = Store(running.gateway.state_dir / STORE_FILE, read_only=True)
        try:
            payload = sum(row.payload_bytes for row in store.updates(1))
        finally:
            store.close()
    return {
        "bytes_payload": payload,
        "bytes_sent_total": sent,
        "ratio": sent / payload,
        "limit": LIMIT,
    }
