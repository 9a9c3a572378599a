"""litert_author: a layer list in, a trainable `.tflite` file out, without TensorFlow.

It runs where a model is designed, not on a device. The file trains through the plain LiteRT
runtimes, with built-in operators alone.
"""

from litert_author import needs  # noqa: F401 - first: it says what to install
from litert_author.backbone import backbone
from litert_author.errors import AuthorError
from litert_author.export import ExportError, export
from litert_author.layers import (
    Layer,
    Lora,
    attention,
    average_pool,
    conv,
    dense,
    embedding,
    flatten,
    gelu,
    global_average,
    gru,
    last_step,
    layer_norm,
    lora,
    max_pool,
    positions,
    relu,
    residual,
    sigmoid,
    tanh,
    transformer_block,
)
from litert_author.optimizers import Optimizer, adam, momentum, sgd
from litert_author.sequential import Sequential

__all__ = [
    "AuthorError",
    "ExportError",
    "Layer",
    "Lora",
    "Optimizer",
    "Sequential",
    "adam",
    "attention",
    "average_pool",
    "backbone",
    "conv",
    "dense",
    "embedding",
    "export",
    "flatten",
    "gelu",
    "global_average",
    "gru",
    "last_step",
    "layer_norm",
    "lora",
    "max_pool",
    "momentum",
    "positions",
    "relu",
    "residual",
    "sgd",
    "sigmoid",
    "tanh",
    "transformer_block",
]
