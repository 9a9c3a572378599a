"""The federation's model through its versions: aggregate, quantize for the way down, keep, serve.

Two forms of each version are kept. *exact* is what aggregation gave. *served* is what a device can
rebuild from the quantized deltas that it was sent. The next delta is taken from `served` to the
new `exact`, so what quantization left out of one version is in the next one's delta: error feedback
with a single state, which cannot go stale. A codec whose error must not be fed back (see
`quantization.codecs`) leaves `exact` equal to `served`.
Devices train from `served`, its digest is the model's digest, and it is what is evaluated.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.store import ModelCommit, Store, StoreError
from quantization import (
    FixedPointSum,
    Step,
    decode,
    encode,
    feeds_back,
    pack_bundle,
    payload_bytes_max,
    resolve_downlink,
)
from wire import Manifest, Schema, Tensors, limits, tensors_digest

_BUNDLES_KEPT: Final = 8


@dataclass(frozen=True, slots=True)
class Download:
    """A packed bundle: what turns `from_version` (-1: nothing) into `version`."""

    version: int
    from_version: int
    payload: bytes


def tensors_to_bytes(schema: Schema, tensors: Tensors) -> bytes:
    """Little-endian float32, tensor after tensor."""
    return b"".join(
        np.ascontiguousarray(tensors[spec.name], dtype="<f4").tobytes() for spec in schema.tensors
    )


def tensors_from_bytes(schema: Schema, data: bytes) -> Tensors:
    """The inverse of `tensors_to_bytes`.

    Raises:
        StoreError: the length is not the schema's.
    """
    if len(data) != 4 * schema.parameters:
        raise StoreError(f"stored tensors have {len(data)} bytes, not {4 * schema.parameters}")
    flat = np.frombuffer(data, "<f4").astype(np.float32)
    tensors: Tensors = {}
    start = 0
    for spec in schema.tensors:
        tensors[spec.name] = flat[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    return tensors


class Models:
    """The latest version in memory, all versions in the store.

    Args:
        manifest: the task's model; version 0.
        store: where versions are kept; version 0 is written at the first start.
        codec: how deltas travel down.
        now_s: unix seconds.

    Raises:
        StoreError: the state directory holds another model.
    """

    def __init__(self, manifest: Manifest, store: Store, codec: str, now_s: float) -> None:
        self.manifest = manifest
        self.schema = manifest.schema.shared
        self._store = store
        self._codec = resolve_downlink(codec)
        self._bundles: OrderedDict[tuple[int, int], Download] = OrderedDict()
        known = store.get("schema_digest")
        digest = bytes.fromhex(self.schema.digest)
        if known is not None and known != digest:
            raise StoreError(f"{store.path}: holds another model; use a new state directory for it")
        latest = store.latest_version()
        if latest is None:
            self._start()
            store.add_first_model(self._commit_record(0, 0, b"", ()), now_s)
            store.put("schema_digest", digest)
        else:
            kept = store.tensors(latest)
            if kept is None:
                raise StoreError(f"{store.path}: the tensors of version {latest} are missing")
            self.version = latest
            self.served = tensors_from_bytes(self.schema, kept[0])
            self.exact = tensors_from_bytes(self.schema, kept[1])
            self.digest = bytes.fromhex(tensors_digest(self.schema, self.served))
            row = store.model(latest)
            if row is None or row["digest"] != self.digest:
                raise StoreError(f"{store.path}: version {latest} is damaged")

    def _start(self) -> None:
        self.version = 0
        self.served = {spec.name: self.manifest.tensors[spec.name] for spec in self.schema.tensors}
        self.exact = dict(self.served)
        self.digest = bytes.fromhex(tensors_digest(self.schema, self.served))

    @property
    def payload_bytes_max(self) -> int:
        """The largest update that this schema can mean."""
        return min(payload_bytes_max(self.schema), limits.TRANSFER_BYTES_MAX)

    def whole(self, served: Tensors) -> Tensors:
        """All tensors, those that do not travel as the task made them, in the manifest's order."""
        return self.manifest.complete(served)

    def sum(self, *, weight_cap: int, updates_max: int) -> FixedPointSum:
        """A fresh accumulator for one round."""
        return FixedPointSum(self.schema, weight_cap=weight_cap, updates_max=updates_max)

    def next_version(
        self, total: FixedPointSum, round_number: int, accepted: tuple[bytes, ...]
    ) -> tuple[ModelCommit, Tensors, Tensors]:
        """FedAvg (McMahan et al. 2017, algorithm 1): the weighted mean of deltas, added.

        Returns:
            What to write, and the new (served, exact) tensors for `adopt` once it is written.
        """
        mean, _weight = total.finish()
        exact = {name: self.exact[name] + mean[name] for name in self.exact}
        change = {name: exact[name] - self.served[name] for name in exact}
        delta = encode(self._codec, change, self.schema, seed=round_number)
        step = decode(delta, self.schema)
        served = {name: self.served[name] + step[name] for name in exact}
        if not feeds_back(self._codec):
            exact = served
        version = self.version + 1
        commit = ModelCommit(
            round=round_number,
            version=version,
            digest=bytes.fromhex(tensors_digest(self.schema, served)),
            delta=delta,
            served=tensors_to_bytes(self.schema, served),
            exact=tensors_to_bytes(self.schema, exact),
            accepted=accepted,
        )
        return commit, served, exact

    def adopt(self, commit: ModelCommit, served: Tensors, exact: Tensors) -> None:
        """Make a version that is on disk the latest."""
        self.version, self.digest = commit.version, commit.digest
        self.served, self.exact = served, exact

    def _commit_record(
        self, version: int, round_number: int, delta: bytes, accepted: tuple[bytes, ...]
    ) -> ModelCommit:
        return ModelCommit(
            round=round_number,
            version=version,
            digest=self.digest,
            delta=delta,
            served=tensors_to_bytes(self.schema, self.served),
            exact=tensors_to_bytes(self.schema, self.exact),
            accepted=accepted,
        )

    # -- the way down ------------------------------------------------------------------------

    def bundle(self, version: int, have: int) -> Download | None:
        """The fewest bytes that bring a device from version `have` (-1: none) to `version`.

        A chain of deltas, or a snapshot when that is smaller or the chain cannot be had; None when
        there is no such version to serve.
        """
        have = have if 0 <= have < version else -1
        key = (version, have)
        if key in self._bundles:
            self._bundles.move_to_end(key)
            return self._bundles[key]
        chain = self._chain(version, have)
        snapshot = self._snapshot(version)
        options = [bundle for bundle in (chain, snapshot) if bundle is not None]
        if not options:
            return None
        best = min(options, key=lambda bundle: len(bundle.payload))
        self._bundles[key] = best
        if len(self._bundles) > _BUNDLES_KEPT:
            self._bundles.popitem(last=False)
        return best

    def _chain(self, version: int, have: int) -> Download | None:
        if not 0 <= have < version or version - have > limits.DELTAS_PER_BUNDLE_MAX:
            return None
        steps = []
        for number in range(have + 1, version + 1):
            row = self._store.model(number)
            if row is None:
                return None
            steps.append(Step(number, bytes(row["delta"])))
        return Download(version, have, pack_bundle(have, tuple(steps)))

    def _snapshot(self, version: int) -> Download | None:
        kept = self._store.tensors(version)
        if kept is None:
            return None
        served = tensors_from_bytes(self.schema, kept[0])
        payload = encode("raw", served, self.schema, seed=0)
        return Download(version, -1, pack_bundle(-1, (Step(version, payload),)))
