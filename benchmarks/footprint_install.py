"""What the base install takes on disk, and what importing it takes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.footprint import MB, Figure, Tell, python_name
from wire import PotluckError

INSTALL_BYTES_MAX: Final = 130 * MB
IMPORT_S_MAX: Final = 0.12
IMPORT_MIB_MAX: Final = 20.0
_ROOT: Final = Path(__file__).parents[1]
_BLOCK_BYTES: Final = 512  # of `st_blocks`, whatever the file system's own are (POSIX)
_INSTALL_S_MAX: Final = 600.0

# After NumPy, which every app of this kind has. The kernel's own books, so that nothing else is
# loaded to look: resident and proportional MiB.
_IMPORT: Final = """
import json, sys, time
def memory():
    try:
        with open("/proc/self/smaps_rollup") as file:
            lines = dict(line.split(":") for line in file if line.startswith(("Rss", "Pss:")))
        return [int(lines[name].split()[0]) / 1024 for name in ("Rss", "Pss")]
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return [peak / (2**20 if sys.platform == "darwin" else 1024)] * 2
import time
began = time.perf_counter(), time.process_time()
import numpy
numpy_took = time.perf_counter() - began[0], time.process_time() - began[1]
before, began = memory(), (time.perf_counter(), time.process_time())
import edge_sdk
took = time.perf_counter() - began[0], time.process_time() - began[1]
grown = [after - then for after, then in zip(memory(), before)]
print(json.dumps([*took, *grown, *numpy_took, *before]))
"""


class InstallError(PotluckError):
    """The base install could not be made; the text says what pip says."""


def disk_bytes(paths: Iterable[Path]) -> int:
    """Room that files and directories take, as `du` counts: blocks, each inode once."""
    seen: dict[tuple[int, int], int] = {}
    for top in paths:
        for path in (top, *top.rglob("*")):
            status = path.lstat()
            blocks = getattr(status, "st_blocks", -(-status.st_size // _BLOCK_BYTES))
            seen[status.st_dev, status.st_ino] = blocks * _BLOCK_BYTES
    return sum(seen.values())


def install_figures(tell: Tell) -> list[Figure]:
    """Install potluck and what it depends on into an empty directory, and weigh it.

    Raises:
        InstallError: pip could not, for want of a package index for example.
    """
    tell("install: pip install --target, potluck and its dependencies")
    with tempfile.TemporaryDirectory(prefix="potluck-install-") as name:
        target = Path(name) / "site"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        try:
            done = subprocess.run(  # noqa: S603 - our own words
                [*command, "install", "--target", str(target), str(_ROOT)],
                check=False,
                capture_output=True,
                text=True,
                timeout=_INSTALL_S_MAX,
            )
        except subprocess.TimeoutExpired as error:
            raise InstallError(
                f"install: pip took more than {_INSTALL_S_MAX:g} s: is the package index there?"
            ) from error
        if done.returncode:
            raise InstallError(
                "install: needs pip and a package index with potluck's dependencies, or leave this"
                f" part out; pip says: {first_error(done.stderr)}"
            )
        packages = sorted(target.glob("*.dist-info"))
        numpy = [path for path in target.iterdir() if path.name.startswith("numpy")]
        whole, alone = disk_bytes([target]), disk_bytes(numpy)
        potluck = disk_bytes(_of_potluck(target))
    return [
        Figure(
            "install",
            "base install with all dependencies",
            whole / MB,
            "MB",
            INSTALL_BYTES_MAX / MB,
            f"{len(packages)} packages, bytecode included; {python_name()}",
        ),
        Figure("install", "of it NumPy", alone / MB, "MB"),
        Figure("install", "of it potluck itself", potluck / MB, "MB"),
    ]


def first_error(stderr: str) -> str:
    """What went wrong first, of all that pip says: the rest follows from it."""
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    return (errors or said[-1:] or ["nothing"])[0]


def _of_potluck(target: Path) -> list[Path]:
    """What potluck's own record lists, by its top directories."""
    records = sorted(target.glob("potluck*.dist-info/RECORD"))
    if not records:
        return []
    names = {line.partition("/")[0] for line in records[0].read_text().splitlines() if "/" in line}
    return [target / name for name in sorted(names - {".."}) if (target / name).exists()]


def import_figures(*, runs: int) -> list[Figure]:
    """`import edge_sdk` after `import numpy`, each time in a new interpreter."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    found = []
    for run in range(runs + 1):
        done = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-c", _IMPORT],
            env={**os.environ, **one_thread, "PYTHONPATH": str(_ROOT)},
            check=True,
            capture_output=True,
        )
        if run:  # the first one compiles what is not compiled yet
            found.append(json.loads(done.stdout))
    wall_s, cpu_s, rss, pss, numpy_s, numpy_cpu_s, numpy_rss, _pss = map(median, zip(*found))  # noqa: B905 - of one length
    # What is slower than the fastest of them was other programs' doing, and so for CPU: they take
    # caches and the other half of a core.
    fastest_s, fastest_cpu_s = (min(one[index] for one in found) for index in (0, 1))
    note = f"fastest of {runs}, median {wall_s:.3f}; NumPy before it, median: {numpy_s:.3f}"
    cpu_note = f"fastest of {runs}, median {cpu_s:.3f}; NumPy before it, median: {numpy_cpu_s:.3f}"
    memory_note = f"proportional {pss:.1f}; Python and NumPy before it: {numpy_rss:.1f}"
    return [
        Figure("import", "import edge_sdk beyond NumPy", fastest_s, "s", IMPORT_S_MAX, note),
        Figure("import", "the same in CPU time", fastest_cpu_s, "s", IMPORT_S_MAX, cpu_note),
        Figure("import", "resident memory of it, median", rss, "MiB", IMPORT_MIB_MAX, memory_note),
    ]
