"""What a run did: the records that every report is made from, and the JSON that `--json` prints.

Bytes are whole MQTT packets with topic, header and retries; energy is an estimate from device
profiles; a figure that nobody measured is None, never 0.
"""

import msgspec

from insight.participation import ClassShare


class RoundRecord(msgspec.Struct, frozen=True):
    """One round.

    `status` is "committed", "abandoned" or "open". `declined` maps a reason to how many invited
    devices gave it before they sent anything; `not_counted` maps a reason to how many updates were
    settled with it. `missing` invited devices were never heard of again. `device_s` are the seconds
    of training and transfer that it has taken of devices, `wasted_device_s` those of devices whose
    update was not counted.

    `staleness` is how many versions old the bases of the counted updates were, on average; None in
    a synchronous round. `metrics_source` says who measured accuracy and loss: "test", "devices",
    "training", or "" where nobody did.
    """

    number: int
    status: str
    invited: int
    accepted: int
    accuracy: float | None
    loss: float | None
    uplink_bytes: int
    downlink_bytes: int
    energy_j: float | None
    duration_s: float
    reason: str = ""
    declined: dict[str, int] = {}
    not_counted: dict[str, int] = {}
    missing: int = 0
    staleness: float | None = None
    metrics_source: str = ""
    device_s: float | None = None
    wasted_device_s: float | None = None


class DeviceRecord(msgspec.Struct, frozen=True):
    """One device over the whole run; `incidents` counts the typed errors that it caused."""

    device: str
    device_class: str
    invited: int = 0
    counted: int = 0
    not_counted: dict[str, int] = {}
    declined: dict[str, int] = {}
    missing: int = 0
    num_examples: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    energy_j: float | None = None
    incidents: dict[str, int] = {}


class Totals(msgspec.Struct, frozen=True):
    """A run in one line.

    `uplink_bytes_float32` is 4 * parameters * updates sent: what the same updates take without a
    codec. `device_updates` were trained and sent; `wasted_updates` of them did not count.
    `model_digest` is the SHA-256 of the last version; `accepted_ids_digest` that of the sorted ids
    of counted updates; `trace_digest` that of the order of events, None where there is none.
    """

    accuracy: float | None
    uplink_bytes: int
    downlink_bytes: int
    uplink_bytes_float32: int
    device_updates: int
    wasted_updates: int
    wall_s: float
    updates_per_s: float
    peak_rss_bytes: int
    model_digest: str
    accepted_ids_digest: str
    trace_digest: str | None
    crypto: str
    engine: str
    epsilon: float | None
    loss: float | None = None
    energy_j: float | None = None
    device_s: float | None = None
    wasted_device_s: float | None = None


class RunRecord(msgspec.Struct, frozen=True):
    """A whole run. `parameters` are those that travel.

    `participation` is who took part, by class. `ended` says why it was over before its last round,
    as "byte_budget_spent"; empty when it was not.
    """

    federation: str
    task: str
    seed: int
    parameters: int
    uplink_codec: str
    downlink_codec: str
    rounds: tuple[RoundRecord, ...]
    totals: Totals
    devices: tuple[DeviceRecord, ...] = ()
    faults: tuple[str, ...] = ()
    participation: tuple[ClassShare, ...] = ()
    ended: str = ""


def ratio_to_float32(totals: Totals) -> float | None:
    """How many times fewer bytes went up than float32 would take; None when nothing went up."""
    if not totals.uplink_bytes or not totals.uplink_bytes_float32:
        return None
    return totals.uplink_bytes_float32 / totals.uplink_bytes
