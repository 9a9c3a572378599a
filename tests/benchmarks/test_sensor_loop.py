import pytest

from benchmarks.sensor_loop import CASES, may_run_in_real_time, sensor_loop_table

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


def test_the_loop_misses_nothing_of_its_own_while_the_device_trains_and_uploads() -> None:
    """In real time, where only the two are on the machine; else only that both go on."""
    real_time = may_run_in_real_time()
    (case,) = [c for c in CASES if c.name == "17k parameters" and c.real_time == real_time]
    missed: list[tuple[int, float]] = []
    for _attempt in range(3):  # what runs in real time still shares disks and interrupts
        (row,) = sensor_loop_table(quick=True, cases=[case], seconds=5.0)
        assert row.readings == 500
        assert row.updates >= 2
        if row.missed == 0 or not real_time:
            return
        missed.append((row.missed, row.gap_max_ms))
    pytest.fail(f"deadlines missed and the longest gap in ms, each time: {missed}")
