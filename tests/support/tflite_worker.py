"""Runs signatures of `.tflite` files for a test that has another NumPy: started by path.

Each line on stdin names two files: an .npz with the model and the arrays of each call, and where
the answers go. It imports nothing of potluck.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def play(interpreter: Any, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The answers of one model's signatures, called in turn."""
    runners: dict[str, Any] = {}
    answers = []
    for signature, arrays in calls:
        if signature not in runners:
            runners[signature] = interpreter.get_signature_runner(signature)
        answers.append(runners[signature](**arrays))
    return answers


def main() -> None:
    """Answer until stdin ends."""
    from tflite_runtime.interpreter import Interpreter  # noqa: PLC0415 - not where tests run

    for line in sys.stdin:
        request, answer = json.loads(line)
        with np.load(request) as given:
            names = json.loads(str(given["names"]))
            calls = [
                (signature, {name: given[f"{i}/{k}"] for k, name in enumerate(inputs)})
                for i, (signature, inputs) in enumerate(names)
            ]
            model = given["model"].tobytes()
        found = play(Interpreter(model_content=model, num_threads=1), calls)
        keys = [list(each) for each in found]
        arrays = {
            f"{i}/{k}": each[name] for i, each in enumerate(found) for k, name in enumerate(keys[i])
        }
        np.savez(answer, names=json.dumps(keys), **arrays)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
