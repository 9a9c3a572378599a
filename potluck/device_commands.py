"""`potluck device run | status | opt-out | opt-in | leave`: one device, and what its owner says."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Final

from edge_sdk import Device, DeviceInfo, DeviceStatus, Policy, consent, read_status
from edge_sdk.reasons import Reason
from potluck.output import Reports, add_json, print_json, stop_on_signals

_STOP_POLL_S: Final = 0.5
_LAST_ROUNDS: Final = 5
_POLICY: Final = Policy()


def add_commands(commands: Any) -> None:
    """Add `device`."""
    device = commands.add_parser("device", help="run one device, or look at it").add_subparsers(
        dest="device_command", required=True, metavar="COMMAND"
    )
    run = device.add_parser(
        "run",
        help="enrol if need be, and take part until stopped",
        description="Run one device: enrol with a token the first time, then take part in rounds"
        " until SIGTERM or Ctrl-C.",
    )
    run.add_argument("--token-file", type=Path, metavar="FILE", help="needed the first time")
    run.add_argument("--task", required=True, metavar="MODULE:OBJECT")
    run.add_argument("--state-dir", type=Path, required=True, help="one directory a device")
    run.add_argument("--broker", help="a broker's URL (default: the token's)")
    run.add_argument("--device-class", default="unknown", help="for reports by class")
    run.add_argument("--index", type=int, default=0, help="passed to task.trainer (default: 0)")
    run.add_argument("--count", type=int, default=1, help="passed to task.trainer (default: 1)")
    run.add_argument("--seed", type=int, default=0, help="passed to task.trainer (default: 0)")
    run.add_argument("--partition", default="iid", help="passed to task.trainer (default: iid)")
    _add_rules(run)
    run.add_argument(
        "--enroll-timeout", type=float, default=60.0, help="seconds to wait (default: 60)"
    )
    add_json(run, "JSON Lines")
    run.set_defaults(run=run_device)

    status = device.add_parser(
        "status",
        help="what a device did, spent and waits for",
        description="Read a device's journal, while it runs or after.",
    )
    status.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    add_json(status)
    status.set_defaults(run=run_status)
    _add_consent(device)


def _add_consent(device: Any) -> None:
    """What an owner may say at any time, also beside a device that runs."""
    out = device.add_parser(
        "opt-out",
        help="send nothing any more, until opt-in",
        description="Take no part and send nothing, until `potluck device opt-in`. A device that"
        " runs hangs up within seconds; it keeps its model.",
    )
    back = device.add_parser(
        "opt-in", help="take part again", description="Take part again after an opt-out."
    )
    leave = device.add_parser(
        "leave",
        help="leave the federation for good, and delete all that was kept",
        description="Have the device revoked by its coordinator, and delete its key, journal and"
        " models. A device that runs here ends.",
    )
    leave.add_argument("--broker", help="a broker's URL (default: the token's)")
    leave.add_argument(
        "--timeout", type=float, default=10.0, help="seconds to wait for it (default: 10)"
    )
    for command, run in ((out, run_opt_out), (back, run_opt_in), (leave, run_leave)):
        command.add_argument("state_dir", type=Path, metavar="STATE_DIR")
        add_json(command)
        command.set_defaults(run=run)


def _add_rules(run: argparse.ArgumentParser) -> None:
    """Options that are fields of `Policy`, by the same names and with the same defaults."""
    run.add_argument("--min-battery", type=float, default=0.3, help="a fraction (default: 0.3)")
    run.add_argument("--require-charging", action="store_true", help="work on a charger only")
    run.add_argument("--allow-metered", action="store_true", help="work on networks that cost")
    for option, unit, kind in (
        ("--bytes-per-day-max", "MQTT bytes a day (default: no bound)", int),
        ("--joules-per-day-max", "energy beyond idling a day (default: no bound)", float),
        ("--training-s-per-day-max", "seconds of training a day (default: no bound)", float),
        ("--cpu-load-max", "other work, a fraction of all cores (default: no bound)", float),
        ("--max-temperature-c", "degrees Celsius (default: 80)", float),
        ("--min-free-memory-bytes", "left to others (default: 64 MiB)", int),
        ("--min-free-disk-bytes", "beside the state (default: 64 MiB)", int),
        ("--training-memory-bytes-max", "growth in training (default: no bound)", int),
    ):
        default = getattr(_POLICY, option[2:].replace("-", "_"))
        run.add_argument(option, type=kind, default=default, help=unit)
    run.add_argument(
        "--quiet-hours",
        action="append",
        metavar="HH:MM-HH:MM",
        help="local time in which to do nothing; may be given more than once",
    )


def run_device(arguments: argparse.Namespace) -> int:
    """`potluck device run`."""
    stop = stop_on_signals()
    reports = Reports(as_json=arguments.json)
    device = Device(
        arguments.task,
        arguments.state_dir,
        policy=Policy(
            min_battery=arguments.min_battery,
            require_charging=arguments.require_charging,
            allow_metered=arguments.allow_metered,
            bytes_per_day_max=arguments.bytes_per_day_max,
            joules_per_day_max=arguments.joules_per_day_max,
            training_s_per_day_max=arguments.training_s_per_day_max,
            cpu_load_max=arguments.cpu_load_max,
            max_temperature_c=arguments.max_temperature_c,
            min_free_memory_bytes=arguments.min_free_memory_bytes,
            min_free_disk_bytes=arguments.min_free_disk_bytes,
            training_memory_bytes_max=arguments.training_memory_bytes_max,
            quiet_hours=tuple(arguments.quiet_hours or ()),
        ),
        on_report=reports,
        device_class=arguments.device_class,
        info=DeviceInfo(
            index=arguments.index,
            count=arguments.count,
            seed=arguments.seed,
            partition=arguments.partition,
        ),
        broker=arguments.broker,
    )
    if arguments.token_file is not None:
        device.enroll(arguments.token_file, timeout_s=arguments.enroll_timeout)
    device.start()
    while not stop() and device.running:
        time.sleep(_STOP_POLL_S)
    device.stop()
    if device.error is not None:
        raise device.error
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """`potluck device status`."""
    status = read_status(arguments.state_dir)
    if arguments.json:
        lines = [
            {
                "update_id": line.update_id.hex(),
                "round": line.round,
                "counted": line.counted,
                "reason": line.reason,
            }
            for line in status.history
        ]
        veto = status.veto
        vetoed = None
        if veto is not None:
            vetoed = {
                "version": veto.version,
                "reason": veto.reason,
                "detail": veto.detail,
                "metrics": veto.metrics,
            }
        print_json({**dataclasses.asdict(status), "history": lines, "veto": vetoed})
    else:
        _print_status(status)
    return 0


def _print_status(status: DeviceStatus) -> None:
    name = status.device or "not enrolled"
    print(f"device        {name}" + (f" of {status.federation}" if status.federation else ""))
    if status.revoked is not None:
        print(f"revoked       {status.revoked}")
    if status.opted_out:
        print("opted out     nothing is sent; `potluck device opt-in` takes it back")
    print(f"model         version {status.model_version} (newest held: {status.held_version})")
    if status.veto is not None:
        print(
            f"vetoed        version {status.veto.version}: {status.veto.reason}"
            + (f" ({status.veto.detail})" if status.veto.detail else "")
        )
    if status.description:
        print(f"description   {status.description[:16]}, from the coordinator")
    print(f"updates       {status.counted} counted, {sum(status.not_counted.values())} not")
    for reason, count in sorted(status.not_counted.items()):
        print(f"              {count} x {reason}")
    last = status.history[-_LAST_ROUNDS:]
    if last:
        said = ", ".join(f"{line.round} {line.reason}" for line in last)
        print(f"last rounds   {said}")
    if status.sealed_round is not None:
        print(f"waiting       the update of round {status.sealed_round} is not settled yet")
    if status.waits:
        # A newer potluck may have written a word that this one does not know.
        says = next((f": {word.says}" for word in Reason if word == status.waits), "")
        print(f"waits         {status.waits}{says}")
    print(
        f"spent today   {status.spent_bytes_today} bytes both ways,"
        f" {status.spent_joules_today:.1f} J, {status.spent_training_s_today:.1f} s of training"
    )
    sys.stdout.flush()


def run_opt_out(arguments: argparse.Namespace) -> int:
    """`potluck device opt-out`."""
    changed = consent.opt_out(arguments.state_dir)
    return _print_consent(arguments, opted_out=True, changed=changed)


def run_opt_in(arguments: argparse.Namespace) -> int:
    """`potluck device opt-in`."""
    changed = consent.opt_in(arguments.state_dir)
    return _print_consent(arguments, opted_out=False, changed=changed)


def _print_consent(arguments: argparse.Namespace, *, opted_out: bool, changed: bool) -> int:
    if arguments.json:
        print_json({"opted_out": opted_out, "changed": changed})
    elif opted_out:
        print("opted out: nothing is sent from now on" if changed else "opted out already")
    else:
        print("opted in: the device takes part again" if changed else "it was not opted out")
    return 0


def run_leave(arguments: argparse.Namespace) -> int:
    """`potluck device leave`."""
    confirmed = consent.leave(
        arguments.state_dir, broker=arguments.broker, timeout_s=arguments.timeout
    )
    if arguments.json:
        print_json({"confirmed": confirmed})
    else:
        print(
            "left, and deleted what was kept here"
            if confirmed
            else "deleted what was kept here; the coordinator did not answer, and still has the"
            " device on its list"
        )
    return 0
