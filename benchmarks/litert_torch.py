"""The two models of `litert_speed` in plain PyTorch: a process that trains when it is told to.

It runs where PyTorch is and potluck need not be. `python litert_torch.py` reads lines of JSON,
`{"model": "mlp", "steps": 100}`, and answers each with the CPU seconds that the steps took.
"""

import json
import sys
import time
from typing import Any

import torch

torch.set_num_threads(1)
nn = torch.nn


def mlp() -> tuple[Any, Any, Any]:
    """64-128-10 and a batch of 16."""
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return module, torch.rand(16, 64), torch.randint(0, 10, (16,))


def cnn() -> tuple[Any, Any, Any]:
    """Two convolutions with pooling and two dense layers, and a batch of 20."""
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 125), nn.ReLU(), nn.Linear(125, 10)),
    )
    return module, torch.rand(20, 1, 28, 28), torch.randint(0, 10, (20,))


def main() -> None:
    """Answer until there is nothing more to read."""
    made = {"mlp": mlp(), "cnn": cnn()}
    loss_of = nn.CrossEntropyLoss()
    optimizers = {
        name: torch.optim.SGD(module.parameters(), lr=0.01)
        for name, (module, _x, _y) in made.items()
    }
    for line in sys.stdin:
        asked = json.loads(line)
        module, x, y = made[asked["model"]]
        optimizer = optimizers[asked["model"]]
        began_s = time.thread_time()
        for _ in range(asked["steps"]):
            optimizer.zero_grad()
            loss_of(module(x), y).backward()
            optimizer.step()
        print(json.dumps({"seconds": time.thread_time() - began_s, "torch": torch.__version__}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
