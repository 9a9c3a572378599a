"""Two runtimes for `.tflite` files: ai-edge-litert here, tflite-runtime 2.14 elsewhere.

The second has an environment of its own, since it needs NumPy 1: `make setup-tflite` makes it, and
where it is not its tests are skipped.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from tests.support import tflite_worker

Answers: TypeAlias = list[dict[str, NDArray[Any]]]
Calls: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]
Runtime: TypeAlias = Callable[[bytes, Calls], Answers]

ROOT = Path(__file__).parents[2]
TFLITE = ROOT / ".venv-tflite" / "bin" / "python"


def litert(model: bytes, calls: Calls) -> Answers:
    """Answers of ai-edge-litert."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    return tflite_worker.play(interpreter, [(name, dict(arrays)) for name, arrays in calls])


@contextlib.contextmanager
def tflite() -> Iterator[Runtime]:
    """Answers of tflite-runtime 2.14, from a process that lives as long as this."""
    worker = subprocess.Popen(
        [TFLITE, tflite_worker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    stdin, stdout = worker.stdin, worker.stdout

    with tempfile.TemporaryDirectory() as folder:
        request, answer = str(Path(folder) / "request.npz"), str(Path(folder) / "answer.npz")

        def run(model: bytes, calls: Calls) -> Answers:
            arrays = {
                f"{i}/{k}": value
                for i, (_, inputs) in enumerate(calls)
                for k, value in enumerate(inputs.values())
            }
            names = json.dumps([(signature, list(inputs)) for signature, inputs in calls])
            data = np.frombuffer(model, np.uint8)
            np.savez(request, model=data, names=np.asarray(names), **arrays)
            stdin.write(json.dumps([request, answer]) + "\n")
            stdin.flush()
            assert stdout.readline() == "done\n", "the process with tflite-runtime has died"
            with np.load(answer) as found:
                keys = json.loads(str(found["names"]))
                return [
                    {name: found[f"{i}/{k}"] for k, name in enumerate(each)}
                    for i, each in enumerate(keys)
                ]

        try:
            yield run
        finally:
            stdin.close()
            worker.wait(10)
            stdout.close()
