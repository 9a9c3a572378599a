import math
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import device_profiles as dp
from device_profiles.mix import MIXES
from device_profiles.profile import CLASSES

SHARES = st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any)
QUARTERS = dp.load_mix({"pi-4": 0.25, "phone-low": 0.75})


@pytest.mark.parametrize("name", dp.mix_names())
def test_a_shipped_mix_sums_to_one_and_has_sources(name: str) -> None:
    """Its shares are a whole, and each says where it is from."""
    mix = dp.load_mix(name)
    assert name == mix.name
    assert abs(math.fsum(mix.shares) - 1.0) <= 1e-6
    file = tomllib.loads((MIXES / f"{name}.toml").read_text("utf-8"))
    assert all(share["source"] for share in file["classes"].values())


@settings(max_examples=50, deadline=None)
@given(SHARES, st.integers(0, 5000))
def test_apportionment_is_exact(weights: list[int], count: int) -> None:
    """Parts sum to the count and differ from their quota by less than one."""
    shares = [weight / sum(weights) for weight in weights]
    parts = dp.apportion(shares, count)
    assert count == sum(parts)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - count * weight / sum(weights)) < 1 + 1e-6


def test_the_largest_remainders_get_the_rest_and_ties_go_to_the_first() -> None:
    """Hamilton's method, on shares as they are written and not as floats round them."""
    assert dp.apportion([0.5, 0.3, 0.2], 10) == (5, 3, 2)
    assert dp.apportion([0.5, 0.5], 3) == (2, 1)
    assert dp.apportion([0.3, 0.4, 0.3], 1) == (0, 1, 0)
    assert dp.apportion([0.1, 0.1, 0.8], 10) == (1, 1, 8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100), st.integers(0, 2**64 - 1))
def test_the_same_seed_assigns_the_same_fleet(count: int, seed: int) -> None:
    """Assignment is a function of count and seed, and a shuffle of the exact counts."""
    fleet = QUARTERS.assign(count, seed)
    assert fleet == QUARTERS.assign(count, seed)
    by_name = Counter(profile.name for profile in fleet)
    assert QUARTERS.counts(count) == (by_name["pi-4"], by_name["phone-low"])


def test_another_seed_shuffles_otherwise() -> None:
    """Classes are not in blocks, and the order is the seed's."""
    mix = dp.load_mix("phones-and-gateways")
    orders = [[profile.name for profile in mix.assign(60, seed)] for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert sum(left != right for left, right in pairwise(orders[0])) > len(mix.classes)


def test_the_assigned_fleet_is_pinned() -> None:
    """The order for a seed is part of what makes runs repeat; it changes only on purpose."""
    mix = dp.load_mix({"pi-4": 0.5, "pi-5": 0.3, "phone-low": 0.2})
    assert mix.assign(0, 7) == []
    expected = "phone-low pi-4 pi-4 pi-5 pi-4 pi-4 pi-5 pi-4 phone-low pi-5"
    assert expected.split() == [profile.name for profile in mix.assign(10, 7)]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"pi-4": 0.5, "pi-5": 0.4}, "mix: shares sum to 0.9; make that 1"),
        ({"pi-4": 1.5, "pi-5": -0.5}, "mix: the share of 'pi-4' is 1.5; it must be 0 to 1"),
        ({"pi-4": math.nan}, "mix: the share of 'pi-4' is nan; it must be 0 to 1"),
        ({}, "mix: shares sum to 0; make that 1"),
        ({"pi-44": 1.0}, "class 'pi-44' is unknown; did you mean 'pi-4'?"),
        ("phones", "mix 'phones' is unknown; known: phones-and-gateways"),
    ],
)
def test_a_mix_that_makes_no_sense_is_one_line(
    shares: str | dict[str, float], expected: str
) -> None:
    """The error says what to write."""
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_mix(shares)
    assert expected == str(caught.value)


def test_an_own_mix_may_name_own_classes_beside_it(tmp_path: Path) -> None:
    """A relative path in a mix starts from the mix's folder."""
    own = (CLASSES / "pi-4.toml").read_text("utf-8").replace('name = "pi-4"', 'name = "mine"')
    (tmp_path / "mine.toml").write_text(own, "utf-8")
    path = tmp_path / "mix.toml"
    path.write_text(
        'name = "m"\ndescription = "d"\n[classes]\n'
        '"mine.toml" = { value = 0.5, source = "s" }\npi-5 = { value = 0.5, source = "s" }\n',
        "utf-8",
    )
    assert [profile.name for profile in dp.load_mix(path).classes] == ["mine", "pi-5"]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (
            'pi-4 = { value = 0.6, source = "s" }',
            "3: [classes] shares sum to 0.6; make that 1",
        ),
        (
            '\npi4 = { value = 1.0, source = "s" }',
            "5: class 'pi4' is unknown; did you mean 'pi-4'?",
        ),
        (
            "pi-4 = 1.0",
            (
                "4: classes.pi-4 has no source; write pi-4 = { value = ..., "
                'source = "who measured it" }, or source = "estimate: why"'
            ),
        ),
    ],
)
def test_a_broken_mix_file_says_where(tmp_path: Path, classes: str, expected: str) -> None:
    """File, line, key."""
    path = tmp_path / "mix.toml"
    path.write_text(f'name = "m"\ndescription = "d"\n[classes]\n{classes}\n', "utf-8")
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_mix(path)
    assert f"{path}:{expected}" == str(caught.value)
