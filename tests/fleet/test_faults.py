from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import Fault, FaultError, load_faults
from fleet.faults import Event, assign, describe
from wire.settings import SettingsError

FILE = """
[[fault]]
kind = "vanish"
devices = 3
round = 2

[[fault]]
kind = "flap"
devices = [0, 4]
for_s = 2.5

[[event]]
kind = "broker_kill"
at_s = 60.0

[[event]]
kind = "clog"
at_s = 5
device = 2
"""


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(FILE)
    faults, events = load_faults(path)
    assert faults == (
        Fault(kind="vanish", devices=3, round=2),
        Fault(kind="flap", devices=(0, 4), for_s=2.5),
    )
    assert events == (Event(kind="broker_kill", at_s=60.0), Event("clog", 5.0, device=2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[fault]]\nkind = "vanishes"\n', "vanish"),
        ('[[fault]]\nkind = "flap"\nroud = 1\n', "round"),
        ('[[fault]]\nkind = "flap"\ndevices = 0\n', "devices"),
        ('[[event]]\nkind = "clock_stop"\nat_s = 1.0\n', "clock_step"),
        ('[[event]]\nkind = "crash"\n', "at_s"),
        ('[[faults]]\nkind = "flap"\n', "fault"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_is_known(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_faults(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@given(count=st.integers(5, 40), seed=st.integers(0, 99), vanish=st.integers(1, 3))
def test_each_device_gets_one_fault_at_most_and_named_ones_theirs(
    count: int, seed: int, vanish: int
) -> None:
    faults = (Fault(kind="garbage"), Fault(kind="flap", devices=(4,)), Fault("vanish", vanish))
    struck = assign(faults, count, seed)
    kinds = [fault.kind for fault in struck.values()]
    assert struck[4].kind == "flap"
    assert (kinds.count("garbage"), kinds.count("vanish")) == (1, vanish)
    assert struck == assign(faults, count, seed)


@pytest.mark.parametrize(
    "faults",
    [
        (Fault("vanish", 6),),
        (Fault("vanish", (5,)),),
        (Fault("vanish", (1,)), Fault("flap", (1,))),
    ],
)
def test_faults_that_do_not_fit_the_fleet_are_refused(faults: tuple[Fault, ...]) -> None:
    with pytest.raises(FaultError):
        assign(faults, 5, 0)


def test_descriptions_are_for_people() -> None:
    assert describe((Fault("vanish", 3, round=2), Fault("flap", (1, 4)))) == (
        "vanish: 3 devices, from round 2",
        "flap: devices 1, 4, from round 1",
    )
