"""The attack table's own federation: honest devices stay, those that mean harm do not."""

import pytest

from benchmarks.attacks import ATTACKERS, Cell, cells, play, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("partition", ["dirichlet:0.5", "blocks"])
def test_nobody_honest_is_quarantined_in_forty_rounds(partition: str) -> None:
    cell = Cell("norm_clip", None, 1.0, quarantines=True, rounds=40, seed=3, partition=partition)
    outcome = play(cell)
    assert outcome.honest_out == 0
    assert outcome.accuracy > 0.85


def test_whoever_turns_updates_round_is_out_soon_and_the_model_learns() -> None:
    outcome = play(Cell("norm_clip", "sign_flip", 10.0, quarantines=True, rounds=25))
    assert (outcome.attackers_out, outcome.honest_out) == (ATTACKERS, 0)
    assert outcome.accuracy > 0.85


def test_without_a_rule_the_model_breaks() -> None:
    assert play(Cell("none", "sign_flip", 10.0, quarantines=False, rounds=12)).accuracy < 0.5


def test_the_table_has_a_line_for_each_rule() -> None:
    outcomes = [play(Cell("norm_clip", None, 1.0, quarantines=True, rounds=2))]
    assert len(table(outcomes)) == 3
    assert len({(c.robust, c.attack, c.amount, c.quarantines) for c in cells()}) == len(cells())
