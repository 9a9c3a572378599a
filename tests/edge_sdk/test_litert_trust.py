"""What a file has to be before it is opened, and the trial in a process of its own.

These run on ai-edge-litert, and once more on tflite-runtime 2.14: `make test-tflite`.
"""

import contextlib
import errno
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import ArtefactRejectedError, LiteRTError, _litert_trust, litert_trial
from edge_sdk._litert_file import check_file
from edge_sdk._litert_trust import trust
from edge_sdk.litert_files import load_manifest, save_manifest
from edge_sdk.litert_trial import Mismatch, Trial
from pilots.digits_litert import FILES
from wire import Artefact, ArtefactInfo, Manifest, TensorSpec
from wire.artefact import probe_batch
from wire.errors import DigestMismatchError, TooLargeError

MLP = load_manifest(FILES / "digits_mlp")
CNN = load_manifest(FILES / "digits_cnn")
NEXT_CHAR = load_manifest(FILES / "next_char")
SHIPPED = {"digits_mlp": MLP, "digits_cnn": CNN, "next_char": NEXT_CHAR}


def artefact_of(manifest: Manifest) -> Artefact:
    assert manifest.artefact is not None
    return manifest.artefact


DATA, INFO = artefact_of(MLP).data, artefact_of(MLP).info


def forged(data: bytes = DATA, first: Manifest = MLP, **changed: Any) -> Manifest:
    """As whoever made the file would say it: with its own hash and length."""
    about = {"sha256": hashlib.sha256(data).digest(), "file_bytes": len(data)} | changed
    info = msgspec.structs.replace(artefact_of(first).info, **about)
    return Manifest(dict(first.tensors), parts=first.parts, artefact=Artefact(data, info))


def with_probe(**changed: Any) -> Manifest:
    return forged(probe=msgspec.structs.replace(INFO.probe, **changed))


@pytest.fixture(autouse=True)
def forget() -> None:
    _litert_trust._passed.clear()
    _litert_trust._failed.clear()


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these files may be opened, not even in another process."""

    def started(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_files_that_pilots_ship_stand_their_trial(name: str) -> None:
    assert trust(SHIPPED[name]) is SHIPPED[name].artefact


@pytest.mark.usefixtures("no_trial")
def test_other_bytes_than_the_manifest_names_are_not_even_read() -> None:
    other = bytes([*DATA[:-1], DATA[-1] ^ 1])
    with pytest.raises(DigestMismatchError):
        trust(forged(other, sha256=INFO.sha256))
    with pytest.raises(TooLargeError):
        trust(forged(DATA + b"\0", sha256=INFO.sha256, file_bytes=len(DATA)))


@pytest.mark.usefixtures("no_trial")
def test_parameters_that_are_not_the_manifest_s_are_refused() -> None:
    other = Manifest({"w": np.zeros((3, 2), np.float32)}, artefact=artefact_of(MLP))
    with pytest.raises(ArtefactRejectedError, match="are not the manifest's tensors"):
        trust(other)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"batch": 17}, r"x is \[16, 64\] of dtype 0, its manifest says \[17, 64\] of 0"),
    "input": ({"x_shape": (63,)}, r"its manifest says \[16, 63\]"),
    "ids": ({"x_dtype": "int32"}, r"dtype 0, its manifest says \[16, 64\] of 2"),
    "labels": ({"y_shape": (2,)}, r"y is \[16\] of dtype 2"),
    "an operator less": ({"operators": INFO.operators[1:]}, r"does not name: \[\(0, 1\)\]"),
    "an operator more": (
        {"operators": (*INFO.operators, (150, 1))},
        r"the file does not have: \[\(150, 1\)\]",
    ),
    "an operator's version": (
        {"operators": ((0, 2), *INFO.operators[1:])},
        r"does not name: \[\(0, 1\)\]",
    ),
    "a parameter's shape": (
        {"parameters": (TensorSpec("hidden/kernel", (200, 64)), *INFO.parameters[1:])},
        r"hidden/kernel is \[64, 200\] of dtype 0, its manifest says \[200, 64\]",
    ),
    "a parameter's name": (
        {"parameters": (TensorSpec("hidden", (64, 200)), *INFO.parameters[1:])},
        r"signature '\w+' has \['hidden/bias', 'hidden/kernel'",
    ),
    "a parameter less": ({"parameters": INFO.parameters[1:]}, r"signature '\w+' has"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_differs_from_its_manifest_is_refused_with_the_reason(what: str) -> None:
    changed, text = WRONG[what]
    with pytest.raises(ArtefactRejectedError, match=text):
        check_file(DATA, msgspec.structs.replace(INFO, **changed))


@pytest.mark.parametrize("at", ["start", "tables", "end"])
@given(data=st.data())
def test_no_bytes_make_the_reader_do_other_than_refuse(at: str, data: st.DataObject) -> None:
    """Of a damaged file it raises one typed error, or finds nothing wrong with it."""
    small = DATA[:2_000]
    if at == "start":
        damaged = data.draw(st.binary(max_size=64))
    elif at == "tables":
        place = data.draw(st.integers(0, 1_999))
        damaged = small[:place] + data.draw(st.binary(min_size=1, max_size=8)) + small[place + 1 :]
    else:
        damaged = DATA[: data.draw(st.integers(0, len(DATA) - 1))]
    with pytest.raises(ArtefactRejectedError):
        check_file(damaged, INFO)


@pytest.mark.slow
@settings(max_examples=60)
@given(place=st.integers(0, len(DATA) - 1), byte=st.integers(0, 255))
def test_one_other_byte_is_refused_or_nothing(place: int, byte: int) -> None:
    damaged = DATA[:place] + bytes([byte]) + DATA[place + 1 :]
    try:
        check_file(damaged, INFO)
    except ArtefactRejectedError:
        assert damaged != DATA


def test_a_vector_that_claims_to_be_huge_costs_nothing() -> None:
    """A count is held against the file's length before anything of that size is made."""
    refused = 0
    for place in range(4, 400, 20):
        damaged = DATA[:place] + b"\xff\xff\xff\x7f" + DATA[place + 4 :]
        with contextlib.suppress(ArtefactRejectedError):
            refused += 1
            check_file(damaged, INFO)
            refused -= 1
    assert refused > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"losses": (2.0, *INFO.probe.losses[1:])}, "the loss of step 0: "),
        ({"losses": (*INFO.probe.losses[:-1], 2.0)}, "the loss of step 3: "),
        ({"moves": (9.0, *INFO.probe.moves[1:])}, "how far hidden/kernel moved: "),
        ({"proximal_losses": (9.0,)}, "the loss of a proximal step with mu and clip: "),
        ({"proximal_moves": (9.0,)}, "how far hidden/kernel moved by proximal steps with mu"),
        ({"seed": 99}, "the loss of step 0: "),
    ],
)
def test_a_file_that_computes_something_else_is_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ArtefactRejectedError, match=f"failed its trial: {text}"):
        trust(with_probe(**changed))


@pytest.mark.slow
def test_what_passed_is_remembered_where_the_app_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(MLP, state_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [_litert_trust.FILE_NAME]
    tried = []
    monkeypatch.setattr(_litert_trust, "_try", lambda *_given: tried.append(1))
    trust(MLP)  # known to the process
    _litert_trust._passed.clear()
    trust(MLP, state_dir=tmp_path)  # a new start of the app
    assert not tried
    _litert_trust._passed.clear()
    trust(with_probe(tolerance=2e-3), state_dir=tmp_path)  # other words about it
    assert len(tried) == 1
    _litert_trust._passed.clear()
    (tmp_path / _litert_trust.FILE_NAME).write_bytes(b'["')
    trust(MLP, state_dir=tmp_path)
    assert len(tried) == 2
    _litert_trust._passed.clear()
    monkeypatch.setattr(_litert_trust, "runtime", lambda: ("another 1.0", None))
    trust(MLP, state_dir=tmp_path)
    assert len(tried) == 3


@pytest.mark.slow
def test_what_is_remembered_is_bounded_and_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_litert_trust, "_try", lambda *_given: None)
    for number in range(40):
        trust(with_probe(tolerance=1e-3 + 1e-5 * number), state_dir=tmp_path)
    assert len(json.loads((tmp_path / _litert_trust.FILE_NAME).read_bytes())) == 32

    def full(*_given: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    trust(with_probe(tolerance=9e-3), state_dir=tmp_path)


@pytest.mark.live
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11"),
        ("import sys; sys.exit(3)", "the process ended with 3"),
        ("import os, time; os.close(1); time.sleep(0.2); os._exit(4)", "the process ended with 4"),
        ("import time; time.sleep(60)", "it took more than 1 s"),
        ("print('x' * 10**7)", "it took more than 1 s"),
        ("print('{}')", "the process"),
    ],
)
def test_a_process_that_dies_hangs_or_raves_is_a_refusal(
    code: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_litert_trust, "_START", code)
    with pytest.raises(ArtefactRejectedError, match=f"failed its trial: .*{text}"):
        trust(MLP, seconds=1 if "took" in text else 30)


@pytest.mark.slow
def test_a_file_that_failed_is_not_tried_at_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    lie = with_probe(losses=tuple(2.0 * loss for loss in INFO.probe.losses))
    with pytest.raises(ArtefactRejectedError, match="failed its trial: the loss of step 0"):
        trust(lie)

    def started(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a process was started")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", started)
        for _ in range(3):
            with pytest.raises(ArtefactRejectedError, match="the loss of step 0"):
                trust(lie)
    trust(MLP)


def test_what_is_remembered_of_files_that_failed_is_bounded() -> None:
    for number in range(100):
        _litert_trust._remember_failure(str(number), "no")
    assert list(_litert_trust._failed) == [str(number) for number in range(68, 100)]


@pytest.mark.live
def test_a_trial_has_only_so_much_memory() -> None:
    """Less than NumPy's own arrays take: it is refused, and nobody else feels it."""
    script = (
        "from edge_sdk import litert_trial as t; import numpy as np; t.limit(50_000_000, 9);"
        "np.ones(10_000_000, np.uint8);\n"
        "try: np.ones(200_000_000, np.uint8)\n"
        "except MemoryError: print('bounded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=Path.cwd()
    )
    expected = b"bounded" if sys.platform == "linux" else b""
    assert expected in done.stdout


@pytest.mark.live
def test_the_trial_s_process_imports_nothing_of_potluck() -> None:
    script = (
        "import importlib.util as u, sys; spec = u.spec_from_file_location('t', sys.argv[1]);"
        "m = u.module_from_spec(spec); spec.loader.exec_module(m);"
        "print(sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, litert_trial.__file__], capture_output=True, check=True
    )
    for name in (b"'wire'", b"'edge_sdk'", b"'msgspec'", b"'cryptography'", b"'paho'"):
        assert name not in done.stdout


class Honest:
    """A file that is none: softmax regression in NumPy, with the six signatures."""

    def __init__(self) -> None:
        self.w = self.anchor = np.zeros((4, 3), np.float32)

    def __call__(self, signature: str, **given: Any) -> dict[str, Any]:
        if signature == "set_parameters":
            self.w = self.anchor = given["w"].copy()
            return {"ok": np.float32(0.0)}
        if signature == "get_parameters":
            return {"w": self.w.copy()}
        scores = given["x"] @ self.w
        if signature == "infer":
            return {"output": scores}
        losses, right, _unsure = litert_trial.scored("softmax", scores.astype(float), given["y"])
        assert right is not None
        if signature == "evaluate":
            sums = (losses @ given["w"], right @ given["w"])
            return dict(zip(("loss_sum", "right_sum"), map(np.float32, sums), strict=True))
        count = max(float(given["w"].sum()), 1.0)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(p)), given["y"]] -= 1.0
        gradient = given["x"].T @ (p * given["w"][:, None]) / count
        gradient += given.get("mu", 0.0) * (self.w - self.anchor)
        if given.get("clip", 0.0):
            gradient *= min(1.0, given["clip"] / np.linalg.norm(gradient))
        self.w = (self.w - given["lr"] * gradient).astype(np.float32)
        return {"loss": np.float32(losses @ given["w"] / count)}


def examined(run: Any) -> None:
    first = {"w": np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)}
    info = msgspec.structs.replace(INFO, batch=8, x_shape=(4,), classes=3)
    batches = [probe_batch(info, step) for step in range(3)]
    figures: dict[str, list[float]] = {}
    for signature, more in (("train", {}), ("train_proximal", {"mu": 0.5, "clip": 0.1})):
        honest = Honest()
        honest("set_parameters", **first)
        w = np.ones(8, np.float32)
        figures[signature] = [
            float(honest(signature, x=x, y=y, w=w, lr=0.5, **more)["loss"]) for x, y in batches
        ]
        figures[f"{signature} moves"] = [float(np.linalg.norm(honest.w - first["w"]))]
    about = {
        "losses": figures["train"],
        "moves": figures["train moves"],
        "proximal_losses": figures["train_proximal"],
        "proximal_moves": figures["train_proximal moves"],
        "mu": 0.5,
        "clip": 0.1,
        "marks": [],
        "learning_rate": 0.5,
        "tolerance": 1e-3,
        "loss": "softmax",
        "classes": 3,
    }
    Trial(run, first, batches, about).examine()


def lying(signature: str, lie: Any) -> Any:
    """An honest file but for one signature."""
    honest = Honest()

    def run(name: str, **given: Any) -> dict[str, Any]:
        return dict(lie(honest, given)) if name == signature else honest(name, **given)

    return run


LIES: dict[str, tuple[str, Any]] = {
    "ignores the mask": ("train", lambda h, g: h("train", **g | {"w": np.ones(8, np.float32)})),
    "ignores the rate": ("train", lambda h, g: h("train", **g | {"lr": np.float32(0.5)})),
    "is another step": ("train_proximal", lambda h, g: h("train", **g | {"lr": g["lr"] / 2})),
    "has no mu": ("train_proximal", lambda h, g: h("train_proximal", **g | {"mu": 0.0})),
    "has no clip": ("train_proximal", lambda h, g: h("train_proximal", **g | {"clip": 0.0})),
    "scales its scores": ("infer", lambda h, g: {"output": h("infer", **g)["output"] * 1.01}),
    "turns its scores": ("infer", lambda h, g: {"output": h("infer", **g)["output"].T}),
    "says too good": ("evaluate", lambda h, g: h("evaluate", **g) | {"right_sum": np.float32(8)}),
    "says too little": ("evaluate", lambda _h, _g: {"loss_sum": np.float32(1)}),
    "says NaN": ("train", lambda _h, _g: {"loss": np.float32("nan")}),
    "says a vector": ("train", lambda _h, _g: {"loss": np.zeros(1, np.float32)}),
    "gives more": ("get_parameters", lambda h, _g: {"w": h.w, "v": h.w}),
    "gives another shape": ("get_parameters", lambda h, _g: {"w": h.w.T}),
    "gives infinity": ("get_parameters", lambda h, _g: {"w": h.w / np.float32(0)}),
    "keeps what it had": ("set_parameters", lambda _h, _g: {"ok": np.float32(0)}),
}


def test_an_honest_file_passes() -> None:
    examined(Honest())


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_file_that_lies_in_any_signature_is_found_out(lie: str) -> None:
    with pytest.raises(Mismatch):
        examined(lying(*LIES[lie]))


@pytest.mark.slow
def test_a_gradient_that_is_off_by_a_little_is_found_though_adam_goes_as_far() -> None:
    """A sixtieth more of a mean in a layer norm's gradient: losses and lengths hardly show it."""
    data = artefact_of(NEXT_CHAR).data
    one = struct.pack("<If", 4, 1.0 / 32.0)
    assert data.count(one) == 1
    mutant = data.replace(one, struct.pack("<If", 4, 1.015625 / 32.0))
    with pytest.raises(ArtefactRejectedError, match=r"which way .* moved"):
        trust(forged(mutant, NEXT_CHAR))


def test_losses_of_each_kind_are_those_of_the_contract() -> None:
    output = np.array([[[2.0, 0.0], [0.0, 1.0]]])
    softmax, right, unsure = litert_trial.scored("softmax", output, np.array([[0, 0]]))
    p = np.exp(output) / np.exp(output).sum(axis=-1, keepdims=True)
    assert softmax == pytest.approx([-np.log(p[0, 0, 0] * p[0, 1, 0]) / 2])
    assert right is not None
    assert right.tolist() == [0.5]
    assert unsure == 0.0
    targets = np.array([[[1.0, 0.0], [0.25, 1.0]]])
    s = 1.0 / (1.0 + np.exp(-output))
    expected = -(targets * np.log(s) + (1 - targets) * np.log(1 - s)).mean()
    assert litert_trial.scored("sigmoid", output, targets)[0] == pytest.approx([expected])
    squared = litert_trial.scored("squared", output, targets)[0]
    assert squared == pytest.approx([np.square(output - targets).mean()])


def test_a_request_comes_back_as_it_was_written() -> None:
    import io  # noqa: PLC0415 - here alone

    told = _litert_trust.request(MLP, artefact_of(MLP), 1_000, 9)
    request, data, arrays = litert_trial.read_request(io.BytesIO(told))
    assert data == DATA
    assert request["parameters"] == [spec.name for spec in INFO.parameters]
    assert request["memory_bytes"] == 1_000 + 4 * len(DATA)
    np.testing.assert_array_equal(arrays[0], MLP.tensors["hidden/kernel"])
    np.testing.assert_array_equal(arrays[4 + 4 + 1], probe_batch(INFO, 0)[1])


def test_probe_batches_are_inside_their_bounds_and_repeat() -> None:
    for manifest in SHIPPED.values():
        info: ArtefactInfo = artefact_of(manifest).info
        x, y = probe_batch(info, 2)
        assert x.shape == (info.batch, *info.x_shape)
        assert x.dtype == info.x_dtype
        assert y.dtype == info.y_dtype
        assert 0 <= y.min() <= y.max() < info.classes
        if info.x_values:
            assert 0 <= x.min() <= x.max() < info.x_values
        else:
            assert -1.0 <= x.min() < x.max() < 1.0
        np.testing.assert_array_equal(probe_batch(info, 2)[0], x)
        assert not np.array_equal(probe_batch(info, 3)[0], x)


def test_files_come_back_as_they_were_saved(tmp_path: Path) -> None:
    save_manifest(CNN, tmp_path / "deep" / "model.v2")
    found = load_manifest(tmp_path / "deep" / "model.v2")
    assert found.artefact == CNN.artefact
    assert found.schema == CNN.schema
    assert found.head == CNN.head
    assert found.step_flops == CNN.step_flops
    for name, array in CNN.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array)
    for path in (tmp_path / "deep").iterdir():
        assert path.read_bytes() == (FILES / f"digits_cnn{path.suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".tflite", ".json", ".npz"])
def test_files_that_are_damaged_or_missing_say_so(tmp_path: Path, suffix: str) -> None:
    save_manifest(MLP, tmp_path / "m")
    path = tmp_path / f"m{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LiteRTError, match=r"is damaged: .*write it with save_manifest"):
        load_manifest(tmp_path / "m")
    path.unlink()
    with pytest.raises(LiteRTError, match="No such file"):
        load_manifest(tmp_path / "m")
    with pytest.raises(LiteRTError, match="the manifest has no"):
        save_manifest(Manifest({"w": np.zeros(2, np.float32)}), tmp_path / "none")
