"""`potluck codec`: arrays in files, bytes in files, and one line when it cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.__main__ import main
from quantization import CODEC_NAMES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    chance = np.random.default_rng(2)
    path = tmp_path / "update.npz"
    sparse = chance.standard_normal((50, 40)) * (chance.random((50, 40)) < 0.2)
    made: dict[str, Any] = {
        "sparse": sparse.astype(np.float32),
        "dense": chance.standard_normal(1_500),
        "b": np.float16(0.5),
        "none": np.zeros((0, 4)),
        "count": np.array(7),
        "a b/\u00fc": np.ones(3, np.float32),
    }
    np.savez(path, **made)
    return path


def run(capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    said: dict[str, Any] = json.loads(captured.out)
    return said


def error_of(capsys: Capture, *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("potluck: ")
    assert captured.err.count("\n") == 1
    return captured.err


def encode(capsys: Capture, source: Path, codec: str, *more: str) -> dict[str, Any]:
    target = source.with_suffix(".pluk")
    return run(capsys, "codec", "encode", "--codec", codec, "--in", source, "--out", target, *more)


@pytest.mark.parametrize(
    "codec", [*CODEC_NAMES, "ecq_sr:16", "auto:0.5", "auto:0.5:900", "secagg_int"]
)
def test_what_is_encoded_can_be_decoded_and_the_figures_are_right(
    source: Path, capsys: Capture, codec: str
) -> None:
    said = encode(capsys, source, codec)
    encoded, decoded = source.with_suffix(".pluk"), source.with_name("back.npz")
    about = run(capsys, "codec", "decode", "--in", encoded, "--out", decoded)
    before, after = np.load(source), np.load(decoded)
    assert after.files == before.files == [tensor["name"] for tensor in about["tensors"]]
    wrong = whole = 0.0
    for name in before.files:
        assert (after[name].dtype, after[name].shape) == (before[name].dtype, before[name].shape)
        wrong += float(np.square(after[name].astype(float) - before[name]).sum())
        whole += float(np.square(before[name].astype(float)).sum())
    assert said["error"] == pytest.approx(wrong / whole, rel=1e-9)
    assert said["bytes"] == encoded.stat().st_size > said["payload_bytes"]
    assert said["parameters"] == 3_505
    assert said["float32_bytes"] == 14_020
    assert said["ratio"] == pytest.approx(14_020 / said["bytes"])
    assert said["bits_per_parameter"] == pytest.approx(8 * said["bytes"] / 3_505)
    assert said["codec"].startswith(codec)
    assert said["codecs"]["none"] is None
    shown = run(capsys, "codec", "show", "--in", encoded)
    assert {tensor["name"]: tensor["codec"] for tensor in shown["tensors"]} == said["codecs"]
    assert shown["bytes"] == said["bytes"]


def test_auto_says_what_it_chose_and_keeps_to_its_bounds(source: Path, capsys: Capture) -> None:
    free = encode(capsys, source, "auto")
    assert free["codec"] == "auto:3"
    assert (free["codecs"]["sparse"], free["codecs"]["dense"]) == ("ecq_sr", "eden")
    many = encode(capsys, source, "auto", "--cohort", "160")
    assert many["codec"] == "auto:12"
    assert many["bytes"] < free["bytes"]
    bound = encode(capsys, source, "auto", "--bytes-max", "300")
    assert bound["payload_bytes"] <= 300
    link = encode(capsys, source, "auto", "--link-rate", "100", "--seconds", "2.5")
    assert link["codec"] == "auto:3:250"
    assert link["payload_bytes"] <= 250


def test_the_same_seed_is_the_same_file_and_another_is_another(
    source: Path, capsys: Capture
) -> None:
    files = []
    for seed in ("1", "1", "2"):
        encode(capsys, source, "ecq_sr", "--seed", seed)
        files.append(source.with_suffix(".pluk").read_bytes())
    assert files[0] == files[1] != files[2]


def test_people_are_told_in_a_few_lines(source: Path, capsys: Capture) -> None:
    target = source.with_suffix(".pluk")
    arguments = ["codec", "encode", "--codec", "q8", "--in", str(source), "--out", str(target)]
    assert main(arguments) == 0
    assert "times less than float32" in capsys.readouterr().out
    assert main(["codec", "show", "--in", str(target)]) == 0
    assert "50x40" in capsys.readouterr().out
    assert main(["codec", "decode", "--in", str(target), "--out", str(source)]) == 0
    assert "6 arrays, 3505 values" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--codec", "zip"), "raw, f16"),
        (("--codec", "ecq_sr:x"), "number above 0"),
        (("--codec", "raw:2"), "no number"),
        (("--codec", "q8", "--cohort", "3"), "--cohort: is for codec auto"),
        (("--codec", "q8", "--bytes-max", "3"), "--bytes-max: is for codec auto"),
        (("--codec", "auto:0.5", "--cohort", "3"), "says its error already"),
        (("--codec", "auto:0.5:90", "--bytes-max", "3"), "says its bytes already"),
        (("--codec", "auto", "--seconds", "3"), "without the other"),
        (("--codec", "auto", "--bytes-max", "20"), "allow more"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    source: Path, capsys: Capture, more: tuple[str, ...], says: str
) -> None:
    target = source.with_suffix(".pluk")
    said = error_of(capsys, "codec", "encode", "--in", source, "--out", target, *more)
    assert says in said
    assert not target.exists()


@pytest.mark.parametrize("number", ["0", "-1", "x", "nan"])
def test_a_number_that_is_none_is_a_mistake_of_the_command_line(
    source: Path, capsys: Capture, number: str
) -> None:
    for option in ("--cohort", "--bytes-max", "--link-rate", "--seconds"):
        with pytest.raises(SystemExit) as ended:
            encode(capsys, source, "auto", option, number)
        assert ended.value.code == 2
        assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({}, "no arrays"),
        ({"w": np.array([1.0, np.nan])}, "w: has values that are not finite"),
        ({"w": np.array([{}], dtype=object)}, "w: is an array of Python objects"),
        ({"w": np.array(["x"])}, "w: has dtype"),
        ({"w": np.ones(3, "V2")}, "save it with .astype(numpy.float32)"),
        ({"w": np.array([2**40])}, "w: 1099511627776"),
        ({"n" * 99: np.ones(1)}, "n" * 64),
    ],
)
def test_arrays_that_cannot_be_encoded_are_one_line(
    tmp_path: Path, capsys: Capture, made: dict[str, Any], says: str
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **made)
    said = error_of(
        capsys, "codec", "encode", "--codec", "auto", "--in", path, "--out", tmp_path / "out"
    )
    assert str(path) in said
    assert says in said
    assert sorted(tmp_path.iterdir()) == [path]


def test_files_that_are_not_there_or_something_else_are_one_line(
    source: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    encoding = ("codec", "encode", "--codec", "raw", "--out", out, "--in")
    decoding = ("codec", "decode", "--out", out, "--in")
    text = tmp_path / "text"
    text.write_text("hello")
    for command in (encoding, decoding, ("codec", "show", "--in")):
        assert "absent" in error_of(capsys, *command, tmp_path / "absent")
        assert str(text) in error_of(capsys, *command, text)
        assert str(tmp_path) in error_of(capsys, *command, tmp_path)
    encode(capsys, source, "eden")
    whole = source.with_suffix(".pluk").read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], whole + b"x", whole[:-9] + b"y" + whole[-8:]):
        text.write_bytes(damaged)
        assert "make it again" in error_of(capsys, *decoding, text)
    assert not out.exists()


def test_where_nothing_can_be_written_nothing_is_left(
    source: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = sorted(tmp_path.iterdir())
    for target in (tmp_path, tmp_path / "absent" / "out"):
        said = error_of(
            capsys, "codec", "encode", "--codec", "raw", "--in", source, "--out", target
        )
        assert str(target) in said
        assert ".tmp" not in said
    assert sorted(tmp_path.iterdir()) == before
