"""Whether a trainable file may be opened in this process.

First what is said of it is held against its bytes (`Artefact.check`), then everything in it that
can be read without running it (`check_file`), then it is opened and stepped in a process of its own
(`litert_trial`). What passed is remembered: in the process, and in the app's state directory. What
failed is remembered in the process alone, since a round comes every few minutes and a trial may
take as long; a machine that was too busy for it gets another chance at the next start.
"""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk import litert_trial
from edge_sdk._litert_file import check_file
from edge_sdk.litert_errors import ArtefactRejectedError, LiteRTError
from wire import Artefact, Manifest
from wire.artefact import probe_batch, probe_signs
from wire.manifest import tensors_digest

# Address space beyond the interpreter's own; a CNN of 1.2 M parameters takes 31 MB.
MEMORY_BYTES_MAX: Final = 268_435_456
# A trial is some 50 steps: 0.2 s of a laptop for small models, 20 s for 5 MB of frozen convolutions
# on tflite-runtime, and much more than that on the slowest boards.
SECONDS_MAX: Final = 300
# How long a process that has closed its output may take to end by itself, so that it can say how.
_END_S: Final = 1.0
FILE_NAME: Final = "litert-trials.json"
_REMEMBERED_MAX: Final = 32
_ANSWER_BYTES_MAX: Final = 4_096
_SIGNS: Final = 2  # of what a trial looks at; a later potluck that looks at more tries again
# The module alone, and not the package that it is in.
_START: Final = (
    "import sys; name = sys.argv[1]; sys.path[:] = sys.argv[2:];"
    " exec(compile(open(name, 'rb').read(), name, 'exec'), {'__name__': '__main__'})"
)

_lock = threading.Lock()
_passed: weakref.WeakSet[Artefact] = weakref.WeakSet()
_failed: dict[str, str] = {}


class _Answer(msgspec.Struct, frozen=True):
    """What the trial's process says."""

    refused: str
    runtime: str


@functools.cache
def runtime() -> tuple[str, Any]:
    """The interpreter's name and class.

    Raises:
        LiteRTError: none is installed.
    """
    try:
        return litert_trial.interpreter_class()
    except litert_trial.NoRuntimeError as error:
        raise LiteRTError(str(error)) from error


def trust(
    manifest: Manifest | None,
    *,
    state_dir: Path | None = None,
    memory_bytes: int = MEMORY_BYTES_MAX,
    seconds: int = SECONDS_MAX,
) -> Artefact:
    """The manifest's artefact, once it may be opened here.

    Raises:
        LiteRTError: the manifest has none, or no interpreter is installed.
        ArtefactRejectedError: the file is not what is said of it, or failed its trial.
        TooLargeError, DigestMismatchError: another file.
    """
    artefact = None if manifest is None else manifest.artefact
    if manifest is None or artefact is None:
        raise LiteRTError("the manifest has no .tflite file: Manifest(..., artefact=...)")
    with _lock:
        if artefact in _passed:
            return artefact
        name, _class = runtime()
        artefact.check()
        if manifest.schema.tensors != artefact.info.parameters:
            raise ArtefactRejectedError("the file's parameters are not the manifest's tensors")
        check_file(artefact.data, artefact.info)
        key = _key(manifest, artefact, name)
        if key in _failed:
            raise ArtefactRejectedError(_failed[key])
        known = _read(state_dir)
        if key not in known:
            said = _try(manifest, artefact, memory_bytes, seconds)
            if said:
                _remember_failure(key, f"the file failed its trial: {said}")
                raise ArtefactRejectedError(_failed[key])
            _write(state_dir, [*known, key][-_REMEMBERED_MAX:])
        _passed.add(artefact)
    return artefact


def _key(manifest: Manifest, artefact: Artefact, name: str) -> str:
    """What a trial depends on: file, manifest, first tensors, interpreter and machine."""
    about = (_SIGNS, name, np.__version__, platform.machine())
    digest = hashlib.sha256(repr(about).encode() + msgspec.msgpack.encode(artefact.info))
    digest.update(tensors_digest(manifest.schema, manifest.tensors).encode())
    return digest.hexdigest()


def request(manifest: Manifest, artefact: Artefact, memory_bytes: int, seconds: int) -> bytes:
    """What the trial's process is told."""
    info = artefact.info
    probe = msgspec.to_builtins(info.probe)
    first = [np.ascontiguousarray(manifest.tensors[spec.name]) for spec in info.parameters]
    signs = [probe_signs(info, number) for number in range(len(first) if info.probe.marks else 0)]
    batches: list[NDArray[Any]] = []
    for step in range(len(info.probe.losses)):
        batches.extend(probe_batch(info, step))
    about = probe | {
        "loss": info.loss,
        "classes": info.classes,
        "parameters": [spec.name for spec in info.parameters],
        "memory_bytes": memory_bytes + 4 * info.file_bytes,
        "cpu_s": seconds,
    }
    return litert_trial.request_bytes(about, artefact.data, [*first, *signs, *batches])


def _remember_failure(key: str, text: str) -> None:
    while len(_failed) >= _REMEMBERED_MAX:
        del _failed[next(iter(_failed))]
    _failed[key] = text


def _try(manifest: Manifest, artefact: Artefact, memory_bytes: int, seconds: int) -> str:
    """Why the file failed its trial, or nothing.

    Raises:
        ArtefactRejectedError: there was no trial.
    """
    told = request(manifest, artefact, memory_bytes, seconds)
    kept = ("LD_LIBRARY_PATH", "SYSTEMROOT", "PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module, by its own path
            [sys.executable, "-I", "-S", "-c", _START, litert_trial.__file__, *_places()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise ArtefactRejectedError(f"its trial cannot be started: {error}") from error
    late = threading.Timer(seconds, process.kill)
    late.daemon = True
    late.start()
    try:
        with process:
            if process.stdin is None or process.stdout is None:
                raise ArtefactRejectedError("its trial cannot be spoken to")
            with contextlib.suppress(OSError):  # it died before it had read all
                process.stdin.write(told)
                process.stdin.close()
            said = process.stdout.read(_ANSWER_BYTES_MAX)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
    finally:
        in_time = late.is_alive()
        late.cancel()
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except msgspec.DecodeError:
        return _death(process.returncode) if in_time else f"it took more than {seconds} s"
    return answer.refused


def _places() -> list[str]:
    """Where this process imports from; the other finds the same interpreter there, and NumPy."""
    return [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - as Python means ""


def _death(code: int) -> str:
    return f"the process died of signal {-code}" if code < 0 else f"the process ended with {code}"


def _read(state_dir: Path | None) -> list[str]:
    """What passed before; nothing where that cannot be read."""
    if state_dir is None:
        return []
    try:
        return msgspec.json.decode((state_dir / FILE_NAME).read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError):
        return []


def _write(state_dir: Path | None, keys: list[str]) -> None:
    """Keep it; on a full disk the trial is only made again."""
    if state_dir is None:
        return
    beside = state_dir / f".{FILE_NAME}.{os.getpid()}"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.json.encode(keys))
        beside.replace(state_dir / FILE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
