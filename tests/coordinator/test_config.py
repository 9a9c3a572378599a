from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.config import FederationConfig, Rounds, Uplink, load_config
from quantization import check_spec
from wire import Plan, limits
from wire.settings import SettingsError


def written(directory: Path, text: str) -> Path:
    path = directory / "fed.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(directory: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_config(written(directory, text))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(directory) + "/")


def test_an_empty_file_is_a_whole_federation(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == FederationConfig()


def test_a_plan_is_what_the_file_says() -> None:
    config = FederationConfig(rounds=Rounds(local_epochs=2, batch=7, learning_rate=0.5))
    assert config.plan(9) == Plan(local_epochs=2, batch=7, learning_rate=0.5, seed=9)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[rounds]\nchort = 3\n", 2, ["chort", "cohort"]),
        ("[roundz]\ncohort = 3\n", 1, ["roundz", "rounds"]),
        ("[rounds]\ncohort = 0\n", 2, ["cohort"]),
        (f"[rounds]\ncohort = {limits.UPDATES_PER_ROUND_MAX + 1}\n", 2, ["cohort"]),
        ('[rounds]\ncohort = "3"\n', 2, ["cohort"]),
        ("[rounds]\n\nquorum = 0.0\n", 3, ["quorum"]),
        ("[rounds]\nquorum = 1.1\n", 2, ["quorum"]),
        ("[rounds]\nquorum = nan\n", 2, ["quorum"]),
        ("[rounds]\ndeadline_s = inf\n", 2, ["deadline_s"]),
        ("[rounds]\nover_select = 0.9\n", 2, ["over_select"]),
        ('[rounds]\nmode = "asink"\n', 2, ["mode", "sync"]),
        ('[uplink]\ncodec = "zip"\n', 2, ["[uplink] codec", "'zip'", "ecq_sr", "eden", "auto"]),
        ('[uplink]\ncodec = "raw:2"\n', 2, ["[uplink] codec", "raw", "no number"]),
        ('[uplink]\n\ncodec = "ecq_sr:much"\n', 3, ["'ecq_sr:much'", "number above 0"]),
        ('[uplink]\ncodec = "auto:0.5:900:1"\n', 2, ["auto:ERROR:BYTES"]),
        ('[uplink]\ncodec = ""\n', 2, ["codec"]),
        (f'[uplink]\ncodec = "ecq_sr:{"1" * 64}"\n', 2, ["codec"]),
        ('[downlink]\ncodec = "zip"\n', 2, ["[downlink] codec", "'zip'", "ecq"]),
        ('[downlink]\ncodec = "auto:0.5"\n', 2, ["[downlink] codec", "auto", "ecq:STEP"]),
        ("[downlink]\npayload_bytes_max = 9\n", 2, ["payload_bytes_max", "unknown"]),
        ("[uplink]\npayload_bytes_max = -1\n", 2, ["payload_bytes_max"]),
        (
            '[uplink]\ncodec = "ecq_sr"\npayload_bytes_max = 900\n',
            3,
            ["payload_bytes_max", "'ecq_sr'", "auto"],
        ),
        (
            '[uplink]\npayload_bytes_max = 900\ncodec = "auto:0.5:800"\n',
            2,
            ["payload_bytes_max", "'auto:0.5:800'"],
        ),
        ('[aggregation]\nrobust = "mode"\n', 2, ["robust", "none"]),
        ("[aggregation]\nweight_cap = 0\n", 2, ["weight_cap"]),
        ('[privacy]\nmode = "central"\n', 2, ["mode", "none"]),
        ("[privacy]\nsecure_aggregation = true\n", 2, ["secure_aggregation", "false"]),
        ("[privacy]\n# more\nnoise_multiplier = 0.5\n", 3, ["noise_multiplier", "mode", "0.0"]),
        ('[federation]\nname = "Digits"\n', 2, ["name", "'Digits'", "lower-case"]),
        ('[federation]\nname = "enrol"\n', 2, ["name", "enrol"]),
        ('[federation]\nname = "a/b"\n', 2, ["name"]),
        ('[federation]\nname = "a+#"\n', 2, ["name"]),
        ('[federation]\nname = ""\n', 2, ["name"]),
        ("[broker]\npacket_bytes_max = 100\n", 2, ["packet_bytes_max"]),
        ('[fleet]\npartition = "by-user"\n', 2, ["partition"]),
        ("[rounds\n", 1, []),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: list[str]
) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"fed.toml:{line}:")
    for word in words:
        assert word in message


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="absent"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "fed.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_config(tmp_path / "fed.toml")


@settings(max_examples=100)
@given(
    st.integers(1, limits.UPDATES_PER_ROUND_MAX),
    st.integers(1, 100),
    st.integers(100, 1_000),
)
def test_quorum_and_over_selection_round_up_as_on_paper(
    cohort: int, quorum_percent: int, over_percent: int
) -> None:
    """In whole percents, where the exact answer needs no floats: 0.07 * 100 is 7, not 8."""
    rounds = Rounds(cohort=cohort, quorum=quorum_percent / 100, over_select=over_percent / 100)
    assert rounds.needed == -(-quorum_percent * cohort // 100)
    assert 1 <= rounds.needed <= cohort
    if rounds.needed == cohort:
        assert rounds.to_invite == cohort
    else:
        assert rounds.to_invite == -(-over_percent * cohort // 100)
    assert rounds.to_invite >= cohort


def test_the_defaults_of_the_manual() -> None:
    assert (Rounds().needed, Rounds().to_invite) == (14, 26)
    assert Rounds(cohort=5, quorum=1.0, over_select=3.0).to_invite == 5


@pytest.mark.parametrize(
    ("uplink", "cohort", "spec"),
    [
        (Uplink(), 10, "auto:3"),
        (Uplink(), 40, "auto:6"),
        (Uplink(payload_bytes_max=900), 10, "auto:3:900"),
        (Uplink("auto:0.25"), 40, "auto:0.25"),
        (Uplink("auto:0.25", 900), 40, "auto:0.25:900"),
        (Uplink("auto:0.25:800"), 40, "auto:0.25:800"),
        (Uplink("ecq_sr:16"), 40, "ecq_sr:16"),
        (Uplink("topk_sign"), 1, "topk_sign"),
    ],
)
def test_an_invitation_names_auto_with_what_it_aims_at_and_other_codecs_as_written(
    uplink: Uplink, cohort: int, spec: str
) -> None:
    assert uplink.spec_for(cohort) == spec
    assert check_spec(spec) == spec


def test_the_longest_rule_of_auto_fits_an_invitation() -> None:
    uplink = Uplink(payload_bytes_max=limits.TRANSFER_BYTES_MAX)
    assert len(uplink.spec_for(limits.UPDATES_PER_ROUND_MAX)) <= limits.NAME_CHARS_MAX
