"""Build the trainable files that pilots ship: `make litert-models` writes them again.

The same definitions make the same bytes; a test holds the files to them.
"""

import sys
from pathlib import Path
from typing import Final

from edge_sdk import NumpyTrainer
from edge_sdk.litert_files import save_manifest
from litert_author import (
    Sequential,
    conv,
    dense,
    embedding,
    flatten,
    last_step,
    max_pool,
    positions,
    relu,
    transformer_block,
)
from wire import Manifest

# Begun as pilots.digits begins, so that a federation of either is the same but for rounding.
DIGITS: Final = NumpyTrainer.manifest(64, 200, 10, seed=7).tensors
HERE: Final = Path(__file__).parents[1] / "pilots" / "litert"
MODELS: Final = {
    "digits_mlp": Sequential(
        (64,),
        [dense(200, name="hidden"), relu(), dense(10, name="scores")],
        batch=16,
        seed=7,
        initial={
            f"{layer}/{kind}": DIGITS[f"{kind[0]}{number}".replace("k", "w")]
            for number, layer in enumerate(("hidden", "scores"))
            for kind in ("kernel", "bias")
        },
    ),
    "digits_cnn": Sequential(
        (8, 8, 1),
        [conv(16, 3), relu(), max_pool(2), conv(32, 3), relu(), flatten(), dense(10)],
        batch=16,
        seed=7,
    ),
    "next_char": Sequential(
        (16,),
        [embedding(64, 32), positions(), transformer_block(4, 64), last_step(), dense(64)],
        batch=16,
        seed=7,
    ),
}


def built(name: str) -> Manifest:
    """One of the models."""
    return MODELS[name].manifest()


def main() -> int:
    """Write those that are named, or all."""
    for name in sys.argv[1:] or MODELS:
        save_manifest(built(name), HERE / name)
        print(f"{HERE / name}.tflite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
