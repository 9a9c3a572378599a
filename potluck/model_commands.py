"""`potluck model list | show | promote | rollback | export`: versions, and what apps use of them.

All of them work beside a running coordinator, which hears of a move within a second or two.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from coordinator.registry import ALIASES, MODELS_DIR, STABLE, Moved, Registry
from coordinator.store import ReleaseRow, VersionRow
from potluck.output import add_json, print_json, when
from potluck.stores import opened_store
from wire import PotluckError

_DIGEST_CHARS: Final = 12


def add_commands(commands: Any) -> None:
    """Add `model`."""
    model = commands.add_parser(
        "model", help="versions of the model, and which of them apps use"
    ).add_subparsers(dest="model_command", required=True, metavar="COMMAND")

    _add(
        model,
        "list",
        run_list,
        "every version, and what the aliases mean",
        "List every version of the model with its figures, and what the aliases mean.",
    )
    show = _add(
        model,
        "show",
        run_show,
        "one version, and when it was released",
        "Show one version: where it comes from, how good it is, when it was released and by whom.",
    )
    show.add_argument("version", metavar="VERSION", help="its number, or stable, or candidate")

    promote = _add(
        model,
        "promote",
        run_promote,
        "point an alias at a version: stable is what apps use",
        "Point an alias at a version. Devices are told of stable: their apps use it from then on.",
    )
    promote.add_argument("version", metavar="VERSION", help="its number, or candidate")
    _add_alias(promote)

    rollback = _add(
        model,
        "rollback",
        run_rollback,
        "point an alias at what it meant before",
        "Point an alias at the version that it meant before; again, and it goes further back.",
    )
    _add_alias(rollback)

    export = _add(
        model,
        "export",
        run_export,
        "write a version's tensors to an .npz",
        "Write a version's shared tensors to an .npz file, checked against their digest.",
    )
    export.add_argument("version", metavar="VERSION", help="its number, or stable, or candidate")
    export.add_argument(
        "-o", "--output", type=Path, help="where to copy it (default: among the state's models)"
    )


def _add(
    model: Any, name: str, run: Callable[[argparse.Namespace], int], short: str, long: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = model.add_parser(name, help=short, description=long)
    command.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    add_json(command)
    command.set_defaults(run=run)
    return command


def _add_alias(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--alias", choices=ALIASES, default=STABLE, help="which alias (default: stable)"
    )


@contextmanager
def _registry(state_dir: Path, *, read_only: bool) -> Iterator[Registry]:
    with opened_store(state_dir, read_only=read_only) as store:
        yield Registry(store, state_dir / MODELS_DIR)


def _number(registry: Registry, word: str) -> int:
    """What the command line calls a version: a number, or an alias."""
    if word.isascii() and word.isdecimal():
        return int(word[:18])
    if word not in ALIASES:
        raise PotluckError(f"{word!r} is no version: write its number, or {' or '.join(ALIASES)}")
    version = registry.aliases().get(word)
    if version is None:
        raise PotluckError(f"{word}: no version was ever promoted to it")
    return version


def release_record(release: ReleaseRow) -> dict[str, Any]:
    """One move of an alias, as JSON has it."""
    return {
        "alias": release.alias,
        "version": release.version,
        "digest": release.digest.hex(),
        "released_at": release.released_at,
        "actor": release.actor,
        "action": release.action,
        "from_version": release.from_version,
    }


def _version(
    row: VersionRow, aliases: dict[str, int], promotable: set[int], vetoes: dict[str, int]
) -> dict[str, Any]:
    return {
        "version": row.version,
        "round": row.round,
        "digest": row.digest.hex(),
        "parent": row.parent,
        "created_at": row.created_at,
        "counted": row.counted,
        "weight": row.weight,
        "bytes": row.model_bytes,
        "delta_bytes": row.delta_bytes,
        "accuracy": row.metrics.get("accuracy"),
        "loss": row.metrics.get("loss"),
        "aliases": [alias for alias, version in aliases.items() if version == row.version],
        "kept": row.version in promotable,
        "vetoes": vetoes,
    }


def run_list(arguments: argparse.Namespace) -> int:
    """`potluck model list`."""
    with _registry(arguments.state_dir, read_only=True) as registry:
        aliases, kept = registry.aliases(), set(registry.promotable())
        vetoes = registry.vetoes()
        versions = [
            _version(row, aliases, kept, vetoes.get(row.version, {})) for row in registry.versions()
        ]
    if arguments.json:
        print_json({"versions": versions, "aliases": aliases})
        return 0
    print(
        f"{'version':>7}  {'made':19}  {'updates':>7}  {'accuracy':>8}  {'loss':>8}"
        f"  {'vetoes':>6}  {'digest':{_DIGEST_CHARS}}  kept"
    )
    for row in versions:
        accuracy, loss = (_figure(row[name]) for name in ("accuracy", "loss"))
        names = " ".join(row["aliases"])
        print(
            f"{row['version']:>7}  {when(row['created_at'])}  {row['counted']:>7}  {accuracy:>8}"
            f"  {loss:>8}  {sum(row['vetoes'].values()) or '-':>6}  {row['digest'][:_DIGEST_CHARS]}"
            f"  {'yes' if row['kept'] else '-':4}  {names}".rstrip()
        )
    if not versions:
        print("no versions yet: the coordinator makes the first when it starts")
    return 0


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def run_show(arguments: argparse.Namespace) -> int:
    """`potluck model show`."""
    with _registry(arguments.state_dir, read_only=True) as registry:
        row = registry.version(_number(registry, arguments.version))
        vetoes = registry.vetoes().get(row.version, {})
        shown = _version(row, registry.aliases(), set(registry.promotable()), vetoes)
        shown["metrics"] = row.metrics
        shown["releases"] = [
            release_record(release)
            for alias in ALIASES
            for release in registry.history(alias)
            if release.version == row.version
        ]
    if arguments.json:
        print_json(shown)
        return 0
    parent = "the task's own" if shown["parent"] is None else f"from version {shown['parent']}"
    print(f"version {row.version}, {parent}, round {row.round}, made {when(row.created_at)}")
    print(f"digest {row.digest.hex()}")
    print(
        f"{row.counted} updates of weight {row.weight}; {row.model_bytes} bytes,"
        f" {row.delta_bytes} as a change"
    )
    for name, value in sorted(row.metrics.items()):
        print(f"{name} {value:.4f}")
    for reason, count in vetoes.items():
        print(f"vetoed by {count} {'device' if count == 1 else 'devices'}: {reason}")
    for release in shown["releases"]:
        before = release["from_version"]
        instead = "" if before is None else f" instead of version {before}"
        print(
            f"{release['alias']} since {when(release['released_at'])}: {release['action']} by"
            f" {release['actor']}{instead}"
        )
    return 0


def _print_moved(arguments: argparse.Namespace, moved: Moved) -> int:
    release = moved.release
    if arguments.json:
        print_json({**release_record(release), "changed": moved.changed})
        return 0
    before = "" if release.from_version is None else f", before it was {release.from_version}"
    print(
        f"{release.alias} is version {release.version}{before}"
        if moved.changed
        else f"{release.alias} is version {release.version} already; nothing was changed"
    )
    return 0


def run_promote(arguments: argparse.Namespace) -> int:
    """`potluck model promote`."""
    with _registry(arguments.state_dir, read_only=False) as registry:
        version = _number(registry, arguments.version)
        moved = registry.promote(version, arguments.alias, actor="operator", now_s=time.time())
    return _print_moved(arguments, moved)


def run_rollback(arguments: argparse.Namespace) -> int:
    """`potluck model rollback`."""
    with _registry(arguments.state_dir, read_only=False) as registry:
        moved = registry.rollback(arguments.alias, actor="operator", now_s=time.time())
    return _print_moved(arguments, moved)


def run_export(arguments: argparse.Namespace) -> int:
    """`potluck model export`."""
    output: Path | None = arguments.output
    if output is not None and output.exists():
        raise PotluckError(f"{output}: exists already; choose another file")
    with _registry(arguments.state_dir, read_only=True) as registry:
        row = registry.version(_number(registry, arguments.version))
        path = registry.export(row.version)
    if output is not None:
        temporary = output.with_name(f".{output.name}.part")
        try:
            shutil.copyfile(path, temporary)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
        path = output
    size = path.stat().st_size
    if arguments.json:
        print_json(
            {"file": str(path), "version": row.version, "digest": row.digest.hex(), "bytes": size}
        )
    else:
        print(f"{path}: version {row.version}, {size} bytes")
    return 0
