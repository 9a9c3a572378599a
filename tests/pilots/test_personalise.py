import pytest

from pilots.personalise import HEAD, compare, task


def test_the_last_layer_is_each_devices_own() -> None:
    schema = task.model().schema
    assert {spec.name for spec in schema.tensors if spec.part == "personal"} == set(HEAD)


@pytest.mark.slow
def test_a_head_each_is_better_than_one_for_all_on_skewed_devices() -> None:
    found = compare(rounds=5)
    assert found.personal > found.shared + 0.1
    assert found.fine_tuned > found.personal - 0.02
    assert found.kept > found.devices // 2
