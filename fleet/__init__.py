"""fleet: many devices in one process, running the same code as one device does.

`run_live` brings up a federation on a laptop: a coordinator, a real broker and N devices with their
profiles, all links in one loop, and faults on purpose. `run_virtual` does the same in virtual time,
where a day passes in seconds and a seed repeats it exactly. Keys and choices follow from a seed,
which only an emulation may do.
"""

from fleet.crypto import SeededSecrets, StubCrypto
from fleet.faults import Fault, FaultError, load_faults
from fleet.record import FleetError, FleetRun
from fleet.run import join, run_live
from fleet.virtual import run_virtual

__all__ = [
    "Fault",
    "FaultError",
    "FleetError",
    "FleetRun",
    "SeededSecrets",
    "StubCrypto",
    "join",
    "load_faults",
    "run_live",
    "run_virtual",
]
