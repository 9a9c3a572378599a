"""`potluck codec encode | decode | show`: what a codec makes of arrays, without a federation."""

import argparse
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from potluck.output import add_json, print_json
from quantization import (
    AutoRule,
    Container,
    PayloadBudgetError,
    check_container_spec,
    name_of,
    open_container,
    pack_container,
)
from wire import PotluckError, npz
from wire.errors import RemoteProtocolError

_AUTO: Final = "auto"
_BFLOAT16: Final = "bfloat16"
_BFLOAT16_BYTES: Final = 2
_FLOAT32_BYTES: Final = 4


class CodecError(PotluckError):
    """Arrays cannot be encoded, or a file cannot be decoded; the text says what to do."""


def add_commands(commands: Any) -> None:
    """Add `codec`."""
    codec = commands.add_parser(
        "codec", help="encode arrays with a codec, and decode them"
    ).add_subparsers(dest="codec_command", required=True, metavar="COMMAND")
    encode = codec.add_parser(
        "encode",
        help="arrays to few bytes",
        description="Encode the arrays of an .npz with a codec, into a file that says what it"
        " holds, and say how many bytes that takes and what it costs.",
    )
    encode.add_argument("--codec", required=True, metavar="NAME", help="NAME or NAME:NUMBER")
    encode.add_argument("--in", dest="source", type=Path, required=True, metavar="FILE.npz")
    encode.add_argument("--out", dest="target", type=Path, required=True, metavar="FILE")
    encode.add_argument("--seed", type=int, default=0, help="of the codec's noise (default: 0)")
    encode.add_argument(
        "--cohort", type=_count, metavar="N", help="auto: updates that are averaged (default: 10)"
    )
    encode.add_argument("--bytes-max", type=_count, metavar="N", help="auto: bytes of a payload")
    encode.add_argument(
        "--link-rate", type=_above_0, metavar="BYTES_PER_S", help="auto: what the link carries"
    )
    encode.add_argument(
        "--seconds", type=_above_0, metavar="S", help="auto: how long the link may take"
    )
    add_json(encode)
    encode.set_defaults(run=run_encode)

    decode = codec.add_parser(
        "decode",
        help="the arrays again",
        description="Decode what `potluck codec encode` wrote, into an .npz.",
    )
    decode.add_argument("--in", dest="source", type=Path, required=True, metavar="FILE")
    decode.add_argument("--out", dest="target", type=Path, required=True, metavar="FILE.npz")
    add_json(decode)
    decode.set_defaults(run=run_decode)

    show = codec.add_parser(
        "show",
        help="what an encoded file holds",
        description="Say what is in a file that `potluck codec encode` wrote.",
    )
    show.add_argument("--in", dest="source", type=Path, required=True, metavar="FILE")
    add_json(show)
    show.set_defaults(run=run_show)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _above_0(text: str) -> float:
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def run_encode(arguments: argparse.Namespace) -> int:
    """`potluck codec encode`."""
    spec, rule = _rule(arguments)
    with arguments.source.open("rb") as file:
        try:
            arrays = npz.read(file)
        except npz.NpzError as error:
            raise CodecError(f"{arguments.source}: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind == "V" and array.dtype.itemsize == _BFLOAT16_BYTES:
            raise CodecError(
                f"{arguments.source}: {name}: has dtype {array.dtype}: an .npz cannot say bfloat16;"
                " save it with .astype(numpy.float32), in which every bfloat16 is"
            )
    try:
        data = pack_container(spec, arrays, seed=arguments.seed, rule=rule)
    except PayloadBudgetError as error:
        raise CodecError(f"{arguments.source}: {error}; allow more") from error
    except PotluckError as error:
        raise CodecError(f"{arguments.source}: {error}") from error
    container = open_container(data)
    _write(arguments.target, data)
    said = _about(container, len(data)) | {
        "codec": spec if rule is None else rule.with_setting(spec).spec,
        "error": _error(arrays, container.tensors()),
    }
    if arguments.json:
        print_json(said)
    else:
        _print(arguments.target, said)
        print(f"error {said['error']:.3g} of the square of the norm")
    return 0


def _rule(arguments: argparse.Namespace) -> tuple[str, AutoRule | None]:
    """The codec as it was asked for, and what `auto` aims at; None with another codec."""
    spec = check_container_spec(arguments.codec)
    numbers = spec.count(":")
    bounds = {
        "--bytes-max": arguments.bytes_max,
        "--link-rate": arguments.link_rate,
        "--seconds": arguments.seconds,
    }
    given = [option for option, value in bounds.items() if value is not None]
    if name_of(spec) != _AUTO and (given or arguments.cohort is not None):
        option = "--cohort" if arguments.cohort is not None else given[0]
        raise CodecError(f"{option}: is for codec auto, not {spec}; leave it out")
    if numbers and arguments.cohort is not None:
        raise CodecError(f"--cohort: {spec} says its error already; write auto, or leave it out")
    if numbers > 1 and given:
        raise CodecError(f"{given[0]}: {spec} says its bytes already; write them once")
    if (arguments.link_rate is None) != (arguments.seconds is None):
        raise CodecError("--link-rate and --seconds: one is of no use without the other")
    if name_of(spec) != _AUTO:
        return spec, None
    rule = AutoRule(payload_bytes_max=arguments.bytes_max or 0)
    if arguments.cohort is not None:
        rule = AutoRule.for_cohort(arguments.cohort, payload_bytes_max=rule.payload_bytes_max)
    if arguments.link_rate is not None:
        rule = rule.for_link(arguments.link_rate, arguments.seconds)
    return spec, rule


def run_decode(arguments: argparse.Namespace) -> int:
    """`potluck codec decode`."""
    container, _size = _open(arguments.source)
    try:
        tensors = container.tensors()
    except RemoteProtocolError as error:
        raise _damaged(arguments.source, error) from error
    except PotluckError as error:
        raise CodecError(f"{arguments.source}: {error}") from error
    # An .npz cannot say bfloat16; float32 has all its values.
    plain = {
        name: array.astype(np.float32) if array.dtype.name == _BFLOAT16 else array
        for name, array in tensors.items()
    }
    _write(arguments.target, npz.to_bytes(plain))
    if arguments.json:
        print_json(
            {
                "file": str(arguments.target),
                "codec": container.codec,
                "tensors": _tensors(container),
                "parameters": container.schema.parameters,
            }
        )
    else:
        print(f"{arguments.target}: {len(plain)} arrays, {container.schema.parameters} values")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """`potluck codec show`."""
    container, size = _open(arguments.source)
    said = _about(container, size) | {"tensors": _tensors(container)}
    if arguments.json:
        print_json(said)
    else:
        _print(arguments.source, said)
        for tensor in said["tensors"]:
            shape = "x".join(map(str, tensor["shape"])) or "-"
            print(f"{tensor['codec'] or '-':10} {tensor['dtype']:8} {shape:16} {tensor['name']}")
    return 0


def _open(path: Path) -> tuple[Container, int]:
    data = path.read_bytes()
    try:
        return open_container(data), len(data)
    except RemoteProtocolError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: RemoteProtocolError) -> CodecError:
    return CodecError(
        f"{path}: {error}; it is not what `potluck codec encode` wrote, or not whole: make it again"
    )


def _about(container: Container, size: int) -> dict[str, Any]:
    parameters = container.schema.parameters
    float32_bytes = _FLOAT32_BYTES * parameters
    return {
        "codec": container.codec,
        "codecs": container.codecs,
        "parameters": parameters,
        "bytes": size,
        "payload_bytes": len(container.payload),
        "bits_per_parameter": 8.0 * size / parameters if parameters else None,
        "float32_bytes": float32_bytes,
        "ratio": float32_bytes / size,
    }


def _tensors(container: Container) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": container.dtypes[tensor.name],
            "codec": container.codecs[tensor.name],
        }
        for tensor in container.schema.tensors
    ]


def _error(arrays: Mapping[str, NDArray[Any]], decoded: Mapping[str, NDArray[Any]]) -> float:
    """|decoded - x|^2 / |x|^2 over all arrays; 0 where there is nothing."""
    wrong = whole = 0.0
    # Scaled, so that no square leaves float64.
    largest = max(float(np.abs(x.astype(np.float64)).max(initial=0.0)) for x in arrays.values())
    scale = 1.0 / largest if largest > 0.0 else 1.0
    for name, array in arrays.items():
        x = array.astype(np.float64) * scale
        wrong += float(np.sum(np.square(decoded[name].astype(np.float64) * scale - x)))
        whole += float(np.sum(np.square(x)))
    return wrong / whole if whole else 0.0


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what is no file, as /dev/null, is just written to."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise CodecError(f"{path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _print(path: Path, said: dict[str, Any]) -> None:
    bits = said["bits_per_parameter"]
    of_each = "" if bits is None else f", {bits:.3g} bits a parameter"
    print(
        f"{path}: {said['bytes']} bytes as {said['codec']}{of_each},"
        f" {said['ratio']:.3g} times less than float32"
    )
