"""The federation's model through its versions: aggregate, quantize for the way down, keep, serve.

Two forms of each version are kept. *exact* is what aggregation gave. *served* is what a device can
rebuild from the quantized deltas that it was sent: see `quantization.downlink`, which makes the
deltas. Devices train from `served`, its digest is the model's digest, and it is what is evaluated.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np

from coordinator.epochs import Numbering
from coordinator.store import ModelCommit, Store, StoreError
from quantization import ChainState, DownlinkChain, payload_bytes_max
from wire import Manifest, Schema, Tensors, limits, tensors_digest

# Bundles are small but for whole models; what is kept of them grows with the model alone.
_BUNDLES_KEPT: Final = 64
_BUNDLE_BYTES_KEPT_MIN: Final = 1_048_576
# Where the store has the shared schema, for readers that have no task.
SCHEMA: Final = "schema"


@dataclass(frozen=True, slots=True)
class Download:
    """A packed bundle: what turns `from_version` (-1: nothing) into `version`."""

    version: int
    from_version: int
    payload: bytes
    digest: bytes


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
        LocalProtocolError: no such codec.
        StoreError: the state directory holds another model.
    """

    def __init__(self, manifest: Manifest, store: Store, codec: str, now_s: float) -> None:
        self.manifest = manifest
        self.schema = manifest.schema.shared
        self._store = store
        self._chain = DownlinkChain(self.schema, codec)
        self._numbering = Numbering.read(store)
        self._bundles: OrderedDict[tuple[int, int], Download] = OrderedDict()
        known = store.get("schema_digest")
        digest = bytes.fromhex(self.schema.digest)
        if known is not None and known != digest:
            raise StoreError(f"{store.path}: holds another model; use a new state directory for it")
        if store.get(SCHEMA) is None:
            store.put(SCHEMA, msgspec.msgpack.encode(self.schema))
        latest = store.latest_version()
        if latest is None:
            first = {spec.name: manifest.tensors[spec.name] for spec in self.schema.tensors}
            self._state = ChainState(0, first, dict(first))
            self.memory = b""
            commit = self._commit_of(self._state, 0, b"", (), b"")
            self.digest = commit.digest
            store.add_first_model(commit, now_s)
            store.put("schema_digest", digest)
        else:
            kept = store.tensors(latest)
            if kept is None:
                raise StoreError(f"{store.path}: the tensors of version {latest} are missing")
            served, exact = (tensors_from_bytes(self.schema, data) for data in kept)
            self._state = ChainState(latest, served, exact)
            self.memory = store.strategy_memory(latest)
            self.digest = bytes.fromhex(tensors_digest(self.schema, served))
            row = store.model(latest)
            if row is None or row["digest"] != self.digest:
                raise StoreError(f"{store.path}: version {latest} is damaged")

    def reconfigure(self, codec: str) -> None:
        """From the next version on deltas travel down in another way."""
        self._chain = DownlinkChain(self.schema, codec)

    @property
    def version(self) -> int:
        """The latest version's number."""
        return self._state.version

    @property
    def lost_up_to(self) -> int:
        """No version of a future that a restore has undone has a higher number; 0 without one."""
        return self._numbering.floor

    @property
    def served(self) -> Tensors:
        """The latest version as devices hold it."""
        return self._state.served

    @property
    def exact(self) -> Tensors:
        """The latest version as it was aggregated."""
        return self._state.exact

    @property
    def payload_bytes_max(self) -> int:
        """The largest update that this schema can mean."""
        return min(payload_bytes_max(self.schema), limits.TRANSFER_BYTES_MAX)

    def whole(self, served: Tensors) -> Tensors:
        """All tensors, those that do not travel as the task made them, in the manifest's order."""
        return self.manifest.complete(served)

    def next_version(
        self, change: Tensors, round_number: int, accepted: tuple[bytes, ...], memory: bytes = b""
    ) -> tuple[ModelCommit, ChainState]:
        """The latest version plus what a round's updates have come to.

        Args:
            change: of every tensor.
            round_number: whose.
            accepted: the updates that it came of.
            memory: what the strategy keeps; it belongs to the version, and is written with it.

        Returns:
            What to write, and the new state for `adopt` once it is written.
        """
        exact = {name: self.exact[name] + change[name] for name in self.exact}
        # After a restore numbers go on far above: no device holds another version of that number.
        start = replace(self._state, version=self._numbering.last_version(self._state.version))
        delta, state = self._chain.advance(start, exact, seed=round_number)
        return self._commit_of(state, round_number, delta, accepted, memory), state

    def adopt(self, commit: ModelCommit, state: ChainState) -> None:
        """Make a version that is on disk the latest."""
        self._state, self.digest, self.memory = state, commit.digest, commit.memory

    def _commit_of(
        self,
        state: ChainState,
        round_number: int,
        delta: bytes,
        accepted: tuple[bytes, ...],
        memory: bytes,
    ) -> ModelCommit:
        return ModelCommit(
            round=round_number,
            version=state.version,
            digest=bytes.fromhex(tensors_digest(self.schema, state.served)),
            delta=delta,
            served=tensors_to_bytes(self.schema, state.served),
            exact=tensors_to_bytes(self.schema, state.exact),
            accepted=accepted,
            memory=memory,
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
        # A snapshot is made once a version, however many devices are each elsewhere.
        snapshot = None if have < 0 else self.bundle(version, -1)
        served_of = self._served if have < 0 else _not_again
        found = self._chain.catch_up(version, have, step_of=self._step, served_of=served_of)
        if found is None or (snapshot is not None and len(snapshot.payload) < len(found.bundle)):
            return snapshot
        digest = hashlib.sha256(found.bundle).digest()
        best = Download(version, found.from_version, found.bundle, digest)
        self._bundles[key] = best
        self._trim_bundles()
        return best

    def _trim_bundles(self) -> None:
        """Forget the bundles that were not asked for lately; the last one stays."""
        total = sum(len(kept.payload) for kept in self._bundles.values())
        bound = max(2 * 4 * self.schema.parameters, _BUNDLE_BYTES_KEPT_MIN)
        while len(self._bundles) > 1 and (total > bound or len(self._bundles) > _BUNDLES_KEPT):
            total -= len(self._bundles.popitem(last=False)[1].payload)

    def _step(self, version: int) -> bytes | None:
        row = self._store.model(version)
        # A version whose delta was let go of keeps its row.
        return None if row is None or not row["delta"] else bytes(row["delta"])

    def _served(self, version: int) -> Tensors | None:
        if version == self.version:
            return self.served
        kept = self._store.tensors(version)
        return None if kept is None else tensors_from_bytes(self.schema, kept[0])


def _not_again(_version: int) -> None:
    """A snapshot was looked for already."""
