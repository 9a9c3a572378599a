"""A trainable file on disk, with what belongs to it: the three files that a task ships.

`NAME.tflite` is the file, `NAME.json` what is said of it (`ArtefactInfo`), `NAME.npz` the first
tensors. Whoever builds a model writes them; a task reads them, on devices and on the coordinator.
"""

from pathlib import Path

import msgspec
import numpy as np

from edge_sdk.litert_errors import LiteRTError
from wire import Artefact, ArtefactInfo, Manifest, npz
from wire.errors import PotluckError
from wire.manifest import Part


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`NAME.json`."""

    info: ArtefactInfo
    flops_per_example: float | None = None
    head: tuple[str, ...] = ()


def save_manifest(manifest: Manifest, stem: str | Path) -> None:
    """Write `stem.tflite`, `stem.json` and `stem.npz`; the same manifest makes the same bytes.

    Raises:
        LiteRTError: the manifest has no artefact.
        ArtefactRejectedError: devices would not open the file: an operator that is not allowed.
    """
    from edge_sdk._litert_file import check_file  # noqa: PLC0415 - loaded when used

    if manifest.artefact is None:
        raise LiteRTError("the manifest has no .tflite file: Manifest(..., artefact=...)")
    check_file(manifest.artefact.data, manifest.artefact.info)
    base = Path(stem)
    base.parent.mkdir(parents=True, exist_ok=True)
    about = _About(manifest.artefact.info, manifest.flops_per_example, manifest.head)
    _beside(base, ".tflite").write_bytes(manifest.artefact.data)
    with _beside(base, ".npz").open("wb") as file:
        npz.write(file, manifest.tensors)
    text = msgspec.json.format(msgspec.json.encode(about), indent=1)
    _beside(base, ".json").write_bytes(text + b"\n")


def load_manifest(stem: str | Path) -> Manifest:
    """What `save_manifest` wrote.

    Raises:
        LiteRTError: a file is missing or damaged, or they do not belong together.
    """
    base = Path(stem)
    try:
        about = msgspec.json.decode(_beside(base, ".json").read_bytes(), type=_About)
        data = _beside(base, ".tflite").read_bytes()
        with _beside(base, ".npz").open("rb") as file:
            arrays = npz.read(file)
        artefact = Artefact(data, about.info)
        artefact.check()
        parts: dict[str, Part] = {spec.name: spec.part for spec in about.info.parameters}
        tensors = {name: np.asarray(arrays[name], np.float32) for name in parts}
        manifest = Manifest(
            tensors,
            parts=parts,
            artefact=artefact,
            flops_per_example=about.flops_per_example,
            head=about.head,
        )
    except OSError as error:
        raise LiteRTError(f"{base}: {error.strerror}: write it with save_manifest") from error
    except (msgspec.DecodeError, KeyError, ValueError, PotluckError) as error:
        raise LiteRTError(f"{base}: is damaged: {error}; write it with save_manifest") from error
    if manifest.schema.tensors != about.info.parameters:
        raise LiteRTError(f"{base}: its .npz and its .json do not belong together")
    return manifest


def _beside(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)
