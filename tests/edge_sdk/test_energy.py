import pytest

from device_profiles import class_names, load_class, training_w_extra
from edge_sdk.energy import Energy, energy_of


@pytest.mark.parametrize("name", class_names())
def test_a_class_counts_what_its_profile_says_and_an_unknown_one_no_less(name: str) -> None:
    profile, energy, unknown = load_class(name), energy_of(name), energy_of("unknown")
    assert energy.training_w == training_w_extra(profile)
    assert energy.radio_j(2_000_000, 1_000_000) == pytest.approx(
        2 * profile.up_j_per_mb + profile.down_j_per_mb
    )
    assert unknown == Energy()
    assert unknown.training_w >= energy.training_w
    assert unknown.up_j_per_mb >= energy.up_j_per_mb
    assert unknown.down_j_per_mb >= energy.down_j_per_mb
