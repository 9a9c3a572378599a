"""The how-to pages say what the code does: every key, option, event and fault, and no other."""

import argparse
import ast
import dataclasses
import importlib.util
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
import tokenize
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from cryptography import x509

import edge_sdk
import wire
from coordinator import FederationConfig, Store, init_state, load_config
from coordinator.broker import mosquitto_config
from coordinator.config import Federation
from edge_sdk import Conditions, Device, DeviceInfo, DeviceStatus, Model, Policy, _gatekeeper
from edge_sdk.signals import Train, Trained
from edge_sdk.work import TrainingWork
from fleet import load_faults
from fleet.faults import Event, EventKind, Fault, Kind, assign
from fleet.toy import ToyTask
from insight import DeviceRecord, RoundRecord, RunRecord, Totals
from potluck.__main__ import build_parser, main
from potluck.doctor import Check
from quantization import CODEC_NAMES, check_spec
from wire import Plan, Report, SystemSecrets

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PAGES += [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CONFIG_TABLES: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(FederationConfig)
}


def page(name: str) -> str:
    return (HOW_TO / name).read_text(encoding="utf-8")


FEDERATION_FILE = page("federation-file.md")
COMMAND_LINE = page("command-line.md")
FAULTS = page("faults.md")
WRITE_A_TASK = page("write-a-task.md")
EMBED = page("embed.md")
COLLECT = page("collect-examples.md")
RUN_A_GATEWAY = page("run-a-gateway.md")


# -- reading a page ------------------------------------------------------------------------------


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    """The code blocks that a comment gives a file's name."""
    found = re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"no heading {heading!r}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """The cells of a text's tables, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
    heads = {number - 1 for number in rules}
    return [row for number, row in enumerate(cells) if number not in heads | set(rules)]


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# -- the federation file and the fault file ------------------------------------------------------


def toml(value: Any) -> str:
    """A default as TOML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    return "1e-5" if value == 1e-5 else repr(value)


def types_of(hint: Any) -> str:
    """The type column, from a type hint."""
    if typing.get_origin(hint) is typing.Annotated:
        return types_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{toml(choice)}`" for choice in typing.get_args(hint))
    if typing.get_args(hint):
        return "text, or a table of shares"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}[hint]


def number(value: float) -> str:
    return str(int(value)) if value < 1e9 else f"{value:g}".replace("e+", "e")


def bounds_of(hint: Any) -> str:
    """The bounds column, from a type hint."""
    metas = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
    parts: dict[str, float] = {}
    for meta in metas:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(meta, name) is not None:
                parts[name] = getattr(meta, name)
    if not parts:
        return ""
    if "ge" in parts:
        upper = f" to {number(parts['le'])}" if "le" in parts else " and up"
        if "lt" in parts:
            upper = f" to under {parts['lt']:g}"
        return f"{number(parts['ge'])}{upper}"
    upper = f"to {number(parts['le'])}" if "le" in parts else f"under {number(parts['lt'])}"
    return f"over {number(parts['gt'])}, {upper}"


@pytest.mark.parametrize("table", CONFIG_TABLES)
def test_every_key_of_a_table_is_there_with_type_bounds_and_default(table: str) -> None:
    stated = {row[0].strip("`"): row for row in rows(section(FEDERATION_FILE, f"## `[{table}]`"))}
    fields = msgspec.structs.fields(CONFIG_TABLES[table])
    assert list(stated) == [field.name for field in fields]
    for field in fields:
        _key, kind, bounds, default, what = stated[field.name]
        assert kind == types_of(field.type), field.name
        assert bounds == bounds_of(field.type), field.name
        assert default == f"`{toml(field.default)}`", field.name
        assert what.endswith("."), field.name


def test_a_key_with_one_choice_says_that_only_the_default_is_allowed() -> None:
    for table, struct in CONFIG_TABLES.items():
        hints = {field.name: field.type for field in msgspec.structs.fields(struct)}
        for row in rows(section(FEDERATION_FILE, f"## `[{table}]`")):
            hint = hints[row[0].strip("`")]
            lone = typing.get_origin(hint) is typing.Literal and len(typing.get_args(hint)) == 1
            if lone:
                assert "Only the default is allowed today" in row[4], row[0]
            elif "Only the default" in row[4]:
                assert row[0] == "`noise_multiplier`"


def test_every_codec_is_there_and_no_other() -> None:
    for page in ("federation-file.md", "choose-a-codec.md"):
        table = rows((HOW_TO / page).read_text(encoding="utf-8"))
        assert set(CODEC_NAMES) <= {name for row in table for name in quoted(row[0])}, page
    codecs = rows(section(FEDERATION_FILE, "## Codecs"))
    assert {name for row in codecs for name in quoted(row[0])} == set(CODEC_NAMES)
    for spec in quoted(section(FEDERATION_FILE, "## Codecs")):
        if ":" in spec and not spec.startswith("auto:E"):
            assert check_spec(spec) == spec


def test_no_table_is_there_that_the_code_lacks() -> None:
    headings = re.findall(r"^## `\[(\w+)\]`$", FEDERATION_FILE, re.MULTILINE)
    assert headings == list(CONFIG_TABLES)


def test_the_whole_file_has_every_key_and_loads_to_the_defaults(tmp_path: Path) -> None:
    (text,) = blocks(FEDERATION_FILE, "toml")
    path = tmp_path / "federation.toml"
    path.write_text(text)
    assert load_config(path) == FederationConfig()
    assert {table: list(keys) for table, keys in tomllib.loads(text).items()} == {
        table: [field.name for field in msgspec.structs.fields(struct)]
        for table, struct in CONFIG_TABLES.items()
    }


def test_an_empty_file_is_a_federation(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert load_config(path).federation == Federation()


def test_every_key_of_a_fault_is_there_with_its_default_and_no_other() -> None:
    stated = {row[0].strip("`"): row for row in rows(section(FAULTS, "## Keys"))}
    fields = msgspec.structs.fields(Fault)
    assert list(stated) == [field.name for field in fields]
    for field in fields:
        if not field.required:
            assert stated[field.name][3] == f"`{toml(field.default)}`"
    assert stated["for_s"][2] == bounds_of(Fault.__annotations__["for_s"])


def test_every_kind_of_fault_is_there_and_no_other() -> None:
    assert [row[0].strip("`") for row in rows(section(FAULTS, "## Kinds"))] == list(
        typing.get_args(Kind)
    )


def test_the_fault_file_loads_and_shows_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("\n".join(blocks(FAULTS, "toml")))
    faults, events = load_faults(path)
    assert {fault.kind for fault in faults} == set(typing.get_args(Kind))
    assert assign(faults, 12, seed=0)
    assert len(events) == 2


def test_every_key_and_kind_of_an_event_is_there_and_no_other() -> None:
    about = section(FAULTS, "## By time: `[[event]]`")
    keys = [field.name for field in msgspec.structs.fields(Event)]
    kinds = list(typing.get_args(EventKind))
    stated = [name.strip("` ") for row in rows(about) for name in row[0].split(",")]
    assert sorted(stated) == sorted([*keys, *kinds])


# -- the command line ----------------------------------------------------------------------------


def leaves(
    parser: argparse.ArgumentParser, name: str = "potluck"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, by its full name."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, inner in group.choices.items():
            yield from leaves(inner, f"{name} {word}")


COMMANDS = dict(leaves(build_parser()))
COMMON = {"-h", "--help", "--json"}


def test_every_command_has_its_section_and_no_other_has() -> None:
    headings = re.findall(r"^## (potluck .+)$", COMMAND_LINE, re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_there_with_default_and_choices(command: str) -> None:
    text = section(COMMAND_LINE, f"## {command}")
    stated = {tuple(quoted(row[0])): row for row in rows(text) if row[0].startswith("`-")}
    actions = [
        action
        for action in COMMANDS[command]._actions
        if action.option_strings and not set(action.option_strings) & COMMON
    ]
    assert set(stated) == {tuple(action.option_strings) for action in actions}
    for action in actions:
        _option, default, what = stated[tuple(action.option_strings)]
        if action.required:
            assert default == "needed"
        elif action.default is not None and action.default is not False:
            value = f"{action.default:g}" if isinstance(action.default, float) else action.default
            assert default == f"`{value}`"
        else:
            assert not default.startswith("`"), f"{action.option_strings}: {default}"
        for choice in action.choices or ():
            assert f"`{choice}`" in what
        absent = "not in this version" in (action.help or "")
        assert absent == ("Not in this version" in what)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_is_said_to(command: str) -> None:
    assert "--json" in COMMANDS[command]._option_string_actions
    assert "`--json`" in section(COMMAND_LINE, f"## {command}")


def test_every_argument_that_has_no_option_is_named() -> None:
    for command, parser in COMMANDS.items():
        for action in parser._actions:
            if not action.option_strings:
                assert str(action.metavar) in section(COMMAND_LINE, f"## {command}")


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_named_that_does_not_exist(name: str) -> None:
    known = {option for parser in COMMANDS.values() for option in parser._option_string_actions}
    known |= {"--version"}
    text = prose((ROOT / name).read_text(encoding="utf-8"))
    named = {word for code in quoted(text) for word in re.findall(r"(?<![\w-])--[a-z-]+", code)}
    assert named <= known


def test_no_option_is_named_in_the_section_of_a_command_that_lacks_it() -> None:
    for command, parser in COMMANDS.items():
        codes = quoted(section(COMMAND_LINE, f"## {command}"))
        own = {option for code in codes if code.startswith("--") for option in [code.split()[0]]}
        assert own <= set(parser._option_string_actions)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_a_page_gives_to_type_is_accepted(name: str) -> None:
    for block in blocks((ROOT / name).read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and words[0] == "potluck":
                build_parser().parse_args(words[1:])


@pytest.mark.parametrize("path", sorted(HOW_TO.glob("*.md")), ids=lambda path: path.name)
def test_every_command_that_a_sentence_names_exists(path: Path) -> None:
    groups = {command.rpartition(" ")[0] for command in COMMANDS}
    for code in quoted(prose(path.read_text(encoding="utf-8"))):
        if re.match(r"potluck [a-z]", code):
            words = re.match(r"[a-z ]+", code + " ")[0].split()  # type: ignore[index]
            names = {" ".join(words[:count]) for count in (2, 3)}
            assert names & (groups | set(COMMANDS)), code


def first_words(text: str, prefix: str) -> set[str]:
    """What the first cells of the tables of a section name."""
    return {name for row in rows(section(text, prefix)) for name in quoted(row[0])}


def test_every_field_of_a_run_is_there_and_no_other() -> None:
    text = section(COMMAND_LINE, "## potluck fleet run")
    parts = re.split(r"^(?:With `--json` it prints one object|Each of `rounds`|`totals`|Each of)",
                     text, flags=re.MULTILINE)  # fmt: skip
    structs: tuple[type[msgspec.Struct], ...] = (RunRecord, RoundRecord, Totals, DeviceRecord)
    assert len(parts) == len(structs) + 1
    for part, struct in zip(parts[1:], structs, strict=True):
        stated = {name for row in rows(part) for name in quoted(row[0])}
        assert stated == {field.name for field in msgspec.structs.fields(struct)}


def test_every_field_of_a_devices_status_is_there_and_no_other() -> None:
    stated = first_words(COMMAND_LINE, "## potluck device status")
    assert stated == {field.name for field in dataclasses.fields(DeviceStatus)}


def test_every_field_of_a_check_is_there() -> None:
    text = section(COMMAND_LINE, "## potluck doctor")
    assert {field.name for field in dataclasses.fields(Check)} <= set(quoted(text))


def test_every_list_of_the_ledger_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_state(tmp_path / "state", SystemSecrets())
    store = Store(tmp_path / "state" / "coordinator.sqlite3")
    store.add_incidents({("-", "bad_token"): (1, "unknown")})
    store.release("stable", 0, b"d" * 32, 1.0)
    store.close()
    assert main(["ledger", str(tmp_path / "state"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stated = {row[0].strip("`"): row[1] for row in rows(section(COMMAND_LINE, "## potluck ledger"))}
    assert list(stated) == list(printed)
    for name in ("releases", "incidents"):
        assert set(printed[name][0]) <= set(quoted(stated[name]))


def test_every_field_of_a_ledgers_update_is_there() -> None:
    tree = ast.parse((ROOT / "potluck" / "ledger.py").read_text(encoding="utf-8"))
    (update,) = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_update"
    ]
    fields = {
        key.value
        for node in ast.walk(update)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    (row,) = [r for r in rows(section(COMMAND_LINE, "## potluck ledger")) if r[0] == "`updates`"]
    assert fields
    assert fields <= set(quoted(row[1]))


@pytest.mark.parametrize(("side", "room"), [("coordinator", "coordinator"), ("device", "edge_sdk")])
def test_every_event_is_there_and_no_other(side: str, room: str) -> None:
    said = {
        node.args[0].value
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Report"
        and isinstance(node.args[0], ast.Constant)
    }
    _, _, after = COMMAND_LINE.partition(f"<!-- events: {side} -->\n")
    stated = {row[0].strip("`") for row in rows(after.partition("\n\n")[0])}
    assert stated == said


def test_every_report_of_a_device_has_its_place_on_the_embedding_page() -> None:
    _, _, after = COMMAND_LINE.partition("<!-- events: device -->\n")
    events = {row[0].strip("`") for row in rows(after.partition("\n\n")[0])}
    _, _, table = EMBED.partition("<!-- reports -->\n")
    listed = [
        word for row in rows(table.partition("\n\n")[0]) for word in re.findall(r"`(\w+)`", row[1])
    ]
    assert len(set(listed)) == len(listed)
    assert set(listed) == events


# -- a task of one's own -------------------------------------------------------------------------


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in a folder from which they can be imported."""
    for name, text in files(WRITE_A_TASK).items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PUMP_READINGS", raising=False)
    yield tmp_path
    for name in ("pump", "by_hand", "by_function", "on_device"):
        sys.modules.pop(name, None)


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["pump", "by_hand", "by_function"])
def test_a_task_of_the_page_trains_and_its_update_can_be_sent(
    users_folder: Path, name: str
) -> None:
    task = edge_sdk.load_task(f"{name}:task", beside=users_folder)
    manifest = task.model()
    assert manifest.schema == task.model().schema
    order = Train(1, 0, Plan(local_epochs=8), "auto", b"u" * 16, 130_000)
    work = TrainingWork(
        order=order,
        manifest=manifest,
        base=manifest.tensors,
        personal={},
        make_trainer=lambda: task.trainer(DeviceInfo(seed=3)),
    )
    done = work.run()
    assert isinstance(done, Trained), done
    assert done.sealed.num_examples == 48
    trainer = task.trainer(DeviceInfo(seed=3))
    first = Model(0, {key: value.copy() for key, value in manifest.tensors.items()})
    before = trainer.evaluate(first, order.plan, stop=lambda: False)
    result = trainer.train(first, order.plan, stop=lambda: False)
    after = trainer.evaluate(Model(0, result.tensors), order.plan, stop=lambda: False)
    assert after.loss < before.loss
    assert after.num_examples == before.num_examples == 12
    with pytest.raises(edge_sdk.TrainingStoppedError):
        trainer.train(first, order.plan, stop=lambda: True)


def test_the_page_s_device_task_trains_what_the_coordinator_s_task_describes(
    users_folder: Path,
) -> None:
    manifest = edge_sdk.load_task("pump:task", beside=users_folder).model()
    received = wire.read_description(wire.Description(manifest).payload)
    with pytest.raises(edge_sdk.TaskError, match=r"has no model\(\)"):
        edge_sdk.load_task("on_device:task", beside=users_folder)
    task = edge_sdk.load_task("on_device:task", beside=users_folder, needs_model=False)
    trainer = task.trainer(DeviceInfo(seed=3, manifest=received))
    result = trainer.train(Model(0, received.tensors), Plan(), stop=lambda: False)
    assert result.num_examples == 48


def test_the_page_s_own_trainer_keeps_its_personal_parameter(users_folder: Path) -> None:
    manifest = edge_sdk.load_task("by_hand:task", beside=users_folder).model()
    assert [spec.name for spec in manifest.schema.shared.tensors] == ["weights"]


def test_the_page_s_task_reads_a_device_s_own_file_and_has_test_data(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump = edge_sdk.load_task("pump:task", beside=users_folder)
    lines = [",".join(["0.5"] * 8 + [str(row % 2)]) for row in range(10)]
    (users_folder / "north.csv").write_text("\n".join(lines))
    monkeypatch.setenv("PUMP_READINGS", str(users_folder / "north.csv"))
    trainer = pump.trainer(DeviceInfo())
    model = Model(0, pump.model().tensors)
    assert trainer.train(model, Plan(), stop=lambda: False).num_examples == 8
    assert pump.test().evaluate(model, Plan(), stop=lambda: False).num_examples == 500


def test_the_page_s_other_code_runs(users_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert users_folder.is_dir()
    (code,) = set(blocks(WRITE_A_TASK, "python")) - set(files(WRITE_A_TASK).values())
    exec(compile(code, "write-a-task.md", "exec"), {})  # noqa: S102 - the page's own words
    before, after = map(float, capsys.readouterr().out.split())
    assert after < before


def test_the_page_s_federation_file_loads(users_folder: Path) -> None:
    config = load_config(users_folder / "federation.toml")
    assert config.federation.task == "pump:task"


# -- the SDK in an app ---------------------------------------------------------------------------

PYTHON = {
    name: "\n".join(blocks(page(name), "python"))
    for name in (
        *("embed.md", "run-a-gateway.md", "write-a-task.md", "device-profiles.md"),
        "collect-examples.md",
        "personalise.md",
    )
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_compile_and_import_only_names_that_exist(name: str) -> None:
    assert PYTHON[name]
    own = {Path(file).stem for file in files(page(name))}
    for node in ast.walk(ast.parse(PYTHON[name])):
        if isinstance(node, ast.ImportFrom) and node.module not in own:
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def embedded_names(tmp_path: Path) -> Mapping[str, set[str]]:
    """What each name of the page may be asked for."""
    device = Device(ToyTask(), tmp_path)
    fields: dict[str, Any] = {
        "model": Model,
        "candidate": Model,
        "current": Model,
        "status": DeviceStatus,
        "report": Report,
        "policy": Policy,
    }
    known = {name: set(cls.__match_args__) for name, cls in fields.items()}
    return known | {"device": set(dir(device))}


def test_the_embedding_page_asks_only_for_attributes_that_exist(tmp_path: Path) -> None:
    known = embedded_names(tmp_path)
    asked = [
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(PYTHON["embed.md"]))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    asked += [
        (name, attribute)
        for name, attribute in re.findall(r"`(device|report|status|model)\.(\w+)", prose(EMBED))
    ]
    assert asked
    for name, attribute in asked:
        assert not attribute.startswith("_")
        assert attribute in known[name], f"{name}.{attribute}"


def test_the_embedding_page_passes_only_arguments_that_exist() -> None:
    callables: dict[str, Any] = {"Device": Device, "Policy": Policy, "Conditions": Conditions}
    seen = set()
    for node in ast.walk(ast.parse(PYTHON["embed.md"])):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            called = callables.get(node.func.id)
        else:
            called = getattr(Device, getattr(node.func, "attr", ""), None)
        if called is not None:
            given = {word.arg for word in node.keywords}
            assert given <= set(inspect.signature(called).parameters)
            seen.add(getattr(called, "__name__", ""))
    assert {"Device", "Policy", "Conditions", "enroll", "leave", "start", "stop"} <= seen


def test_every_rule_of_a_policy_is_there_with_its_default_and_reason() -> None:
    stated = {row[0].strip("`"): row for row in rows(section(EMBED, "## What the owner allows"))}
    fields = {field.name: field for field in dataclasses.fields(Policy)}
    assert list(stated) == list(fields)
    source = inspect.getsource(edge_sdk.policy.judge) + inspect.getsource(_gatekeeper)
    for name, row in stated.items():
        assert row[1] == f"`{fields[name].default}`"
        closes_nothing = {"check_in_s", "check_releases_at_once", "low_priority"}
        if name not in closes_nothing:
            assert f'"{row[3].strip("`")}"' in source


def test_every_reason_of_a_device_is_there_with_its_meaning() -> None:
    table = section(EMBED, "## Reasons")
    stated = {row[0].strip("`"): row[1] for row in rows(table)}
    assert stated == {str(r): f"{r.says[0].upper()}{r.says[1:]}." for r in edge_sdk.Reason}


def test_every_condition_is_shown() -> None:
    for field in dataclasses.fields(Conditions):
        assert f"{field.name}=" in PYTHON["embed.md"]


# -- examples ------------------------------------------------------------------------------------


def test_every_argument_of_a_store_is_there_with_its_default() -> None:
    stated = {row[0].strip("`"): row[1] for row in rows(section(COLLECT, "## Arguments"))}
    parameters = inspect.signature(edge_sdk.ExampleStore).parameters
    assert list(stated) == list(parameters)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert stated[name] == "needed"
        elif not callable(parameter.default):
            assert stated[name] == f"`{parameter.default}`"


def test_the_page_s_store_collects_trains_and_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gaits.py").write_text(files(COLLECT)["gaits.py"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    adding, deleting = [
        block for block in blocks(COLLECT, "python") if block not in files(COLLECT).values()
    ]
    try:
        exec(compile(adding, "collect-examples.md", "exec"), {})  # noqa: S102 - the page's own words
        gaits = imported("gaits")
        stats = gaits.store.stats()
        assert stats.train + stats.held_out == 200
        # The page asks for the newest hundred that are held out.
        assert capsys.readouterr().out.split() == [str(stats.train + min(stats.held_out, 100))]
        trainer, model = gaits.task.trainer(DeviceInfo()), Model(0, gaits.task.model().tensors)
        # How many of ten groups are held out is chance, of a key that each file has of its own.
        trained = trainer.train(model, Plan(), stop=lambda: False)
        assert trained.num_examples == gaits.store.stats().train > 0
        exec(compile(deleting, "collect-examples.md", "exec"), {})  # noqa: S102 - as above
        assert not gaits.store.add([0.0] * 6, 0)
    finally:
        sys.modules.pop("gaits", None)


# -- a gateway -----------------------------------------------------------------------------------


def test_the_brokers_configuration_is_the_embedded_one_s() -> None:
    stated = files(RUN_A_GATEWAY)["mosquitto.conf"].split("\n")
    ours = mosquitto_config(1883, FederationConfig().broker.packet_bytes_max, Path("/somewhere"))
    own = (
        "listener",
        "persistence_location",
        "sys_interval",
        "log_",
        "connection_messages",
        "user",
    )
    for line in ours.splitlines():
        assert line.startswith(own) or line in stated, line


@pytest.mark.live
def test_the_page_s_script_makes_a_certificate_that_the_coordinators_ca_has_signed(
    tmp_path: Path,
) -> None:
    init_state(tmp_path / "state", SystemSecrets())
    script = tmp_path / "broker_certificate.py"
    script.write_text(files(RUN_A_GATEWAY)["broker_certificate.py"])
    subprocess.run(
        [sys.executable, script.name, "state", "gateway.example"], cwd=tmp_path, check=True
    )
    ca = x509.load_pem_x509_certificate((tmp_path / "state" / "ca.pem").read_bytes())
    broker = x509.load_pem_x509_certificate((tmp_path / "broker.pem").read_bytes())
    broker.verify_directly_issued_by(ca)
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway.example"]
    assert (tmp_path / "broker.key").stat().st_mode & 0o077 == 0


def test_every_file_of_a_state_directory_is_named(tmp_path: Path) -> None:
    assert main(["coordinator", "init", str(tmp_path / "state"), "--json"]) == 0
    named = set(quoted(" ".join(row[0] for row in rows(section(RUN_A_GATEWAY, "## Set up")))))
    assert {path.name for path in (tmp_path / "state").iterdir()} == named


# -- every page ----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What a link may name behind its #."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert found.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", NAMES)
def test_toml_and_python_blocks_can_be_read(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in blocks(text, "toml"):
        tomllib.loads(block)
    for block in blocks(text, "python"):
        list(tokenize.generate_tokens(io.StringIO(block).readline))
        compile(block, name, "exec")


def test_every_decision_is_listed_and_has_its_three_parts() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    # Numbers are given out ahead, so there may be gaps; no number means two things.
    assert len({page.name[:4] for page in pages}) == len(pages)
    assert re.findall(r"^\| \[\d+\]\((\S+)\)", index, re.MULTILINE) == [p.name for p in pages]
    for decision in pages:
        text = decision.read_text(encoding="utf-8")
        assert text.startswith(f"# {decision.name[:4]}: ")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"]


def test_every_file_that_decisions_and_house_rules_name_exists() -> None:
    for path in [*(ROOT / "docs" / "adr").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for named in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json))`", path.read_text("utf-8")):
            assert (ROOT / named).is_file(), named


def test_every_make_target_is_explained_and_no_other() -> None:
    targets = re.findall(
        r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    stated = [row[0].strip("`").removeprefix("make ") for row in rows(section(text, "## Set up"))]
    assert set(stated) == set(targets) - {"help"}
    assert wire.PotluckError.__name__ in EMBED
