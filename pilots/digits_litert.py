"""The digits of `pilots.digits`, trained through LiteRT: a perceptron and a small CNN.

    task = "pilots.digits_litert:mlp"    # 64-200-10, as pilots.digits:task
    task = "pilots.digits_litert:cnn"    # two convolutions, 5,130 parameters

The `.tflite` files beside this module were built with `litert_author` by `make litert-models`.
Devices read them; nothing of what built them is needed there.
"""

import functools
from pathlib import Path
from typing import Final

from edge_sdk import DeviceInfo, LiteRTTrainer
from edge_sdk.litert_files import load_manifest
from pilots import digits
from wire import Manifest

FILES: Final = Path(__file__).parent / "litert"


class DigitsLiteRT:
    """The task with one of the files.

    Args:
        name: of the file, without its suffix.
        shape: of an image, as the file takes it.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name = name
        self._shape = shape

    @functools.cached_property
    def _manifest(self) -> Manifest:
        return load_manifest(FILES / self._name)

    def model(self) -> Manifest:
        """As it was built."""
        return self._manifest

    def trainer(self, device: DeviceInfo) -> LiteRTTrainer:
        """The device's own share, an eighth of it held out."""
        train, held = digits.share(device)
        return self._trainer(train, held, device.seed)

    def test(self) -> LiteRTTrainer:
        """Every fifth image, which no device has."""
        return self._trainer(digits.test_set(), digits.test_set(), 0)

    def _trainer(self, train: digits.Side, held: digits.Side, seed: int) -> LiteRTTrainer:
        shaped = [(x.reshape(-1, *self._shape), y) for x, y in (train, held)]
        return LiteRTTrainer(self._manifest, shaped[0], holdout=shaped[1], seed=seed)


mlp = DigitsLiteRT("digits_mlp", (digits.FEATURES,))
cnn = DigitsLiteRT("digits_cnn", (8, 8, 1))
