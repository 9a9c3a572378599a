"""benchmarks: the federated workloads on which codecs are judged.

Four models on real data that pip packages carry, trained in NumPy alone. `benchmarks.federated`
averages them with whatever codec a caller puts into the uplink and the downlink: no network, no
schedule, no devices that vanish, only what a codec costs in accuracy and saves in bytes.
"""

from benchmarks.workloads import WORKLOADS, Workload, workload

__all__ = ["WORKLOADS", "Workload", "workload"]
