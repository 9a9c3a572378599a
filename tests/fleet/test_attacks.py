"""What attackers send is signed, whole and of the right shape; what it says is something else."""

import numpy as np
import pytest

from coordinator.config import Aggregation, Federation, FederationConfig, Rounds
from fleet import Fault, FleetRun, StubCrypto, run_virtual
from fleet.attacks import ATTACKS, LIE_EXAMPLES, spoil
from fleet.toy import ToyTask
from quantization import decode, encode
from wire import Report
from wire.errors import LocalProtocolError, NotFiniteError

SCHEMA = ToyTask().model().schema.shared


def honest() -> bytes:
    return encode("raw", ToyTask().model().tensors, SCHEMA, seed=0)


@pytest.mark.parametrize(
    ("attack", "amount", "factor", "examples"),
    [
        ("sign_flip", 3.0, -3.0, 24),
        ("scale", 3.0, 3.0, 24),
        ("lie_samples", 3.0, -1.0, LIE_EXAMPLES),
    ],
)
def test_an_attack_decodes_to_its_multiple(
    attack: str, amount: float, factor: float, examples: int
) -> None:
    forged, said = spoil(attack, honest(), 24, SCHEMA, codec="raw", amount=amount)
    assert said == examples
    for name, values in decode(forged, SCHEMA).items():
        assert np.allclose(values, factor * ToyTask().model().tensors[name])


def test_what_is_no_number_is_right_in_every_byte_and_refused_for_its_values() -> None:
    forged, said = spoil("nan", honest(), 24, SCHEMA, codec="raw", amount=1.0)
    assert said == 24
    with pytest.raises(NotFiniteError):
        decode(forged, SCHEMA)


def test_an_attack_that_is_none_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        spoil("vanish", honest(), 1, SCHEMA, codec="raw", amount=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "why"), [("nan", "not_finite"), ("scale", "too_long")])
def test_attackers_of_a_fleet_are_quarantined_and_nobody_else(attack: str, why: str) -> None:
    assert attack in ATTACKS
    seen: list[Report] = []
    config = FederationConfig(
        federation=Federation(name="toy"),
        rounds=Rounds(count=10, cohort=8, quorum=0.5, deadline_s=120.0),
        aggregation=Aggregation(strikes_max=2),
    )
    fault = Fault(kind=attack, devices=(3,), amount=100.0)  # type: ignore[arg-type] # one of them
    run = FleetRun(
        config=config,
        task=ToyTask(),
        count=10,
        seed=1,
        crypto=StubCrypto(),
        faults=(fault,),
        observe=seen.append,
    )
    record = run_virtual(run)
    out = [report for report in seen if report.what == "quarantined"]
    assert [report.detail for report in out] == [why]
    assert out[0].device == record.devices[3].device
