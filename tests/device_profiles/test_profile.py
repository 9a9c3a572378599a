import tomllib
from pathlib import Path

import pytest

import device_profiles as dp
from device_profiles.profile import CLASSES
from wire import PotluckError

PI_4 = (CLASSES / "pi-4.toml").read_text(encoding="utf-8")
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "device-profiles.md"


def written(tmp_path: Path, text: str) -> Path:
    """A file of a class of one's own."""
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def line_of(text: str, start: str) -> int:
    """The number of the first line that starts like this."""
    return 1 + next(i for i, line in enumerate(text.splitlines()) if line.startswith(start))


def numbers(data: object, at: str = "") -> set[str]:
    """The dotted keys of all numbers of a parsed class, found without the loader's help."""
    if not isinstance(data, dict):
        return set() if isinstance(data, str) else {at}
    if "value" in data:
        assert isinstance(data["source"], str)
        return {at} if data["source"].strip() else set()
    return set().union(*(numbers(value, f"{at}.{key}".strip(".")) for key, value in data.items()))


@pytest.mark.parametrize("name", dp.class_names())
def test_every_number_of_every_shipped_class_has_a_source(name: str) -> None:
    """No number is bare, none is lost, and an estimate says why."""
    fields = {field for field in dp.DeviceProfile.__struct_fields__ if field != "day"}
    expected = (fields - {"name", "description"}) | {
        f"day.{field}" for field in dp.DayPattern.__struct_fields__
    }
    sources = dp.class_sources(name)
    assert expected == sources.keys()
    assert expected == numbers(tomllib.loads((CLASSES / f"{name}.toml").read_text("utf-8")))
    for source in sources.values():
        assert not source.lower().startswith("estimate") or len(source) > len("estimate: ..."), name


@pytest.mark.parametrize("name", dp.class_names())
def test_a_shipped_class_is_named_like_its_file(name: str) -> None:
    """What a mix calls a class is what reports call it."""
    assert name == dp.load_class(name).name


def test_there_are_six_classes_at_least_and_both_kinds_of_supply() -> None:
    """Boards on mains and devices with a battery are both there."""
    classes = [dp.load_class(name) for name in dp.class_names()]
    assert len(classes) >= 6
    assert {True, False} == {profile.on_mains for profile in classes}


def test_an_own_class_loads_from_its_path(tmp_path: Path) -> None:
    """A path does as well as a name, as text or as a Path."""
    path = written(tmp_path, PI_4.replace('name = "pi-4"', 'name = "mine"'))
    assert dp.load_class(path).name == "mine"
    assert dp.load_class(path) == dp.load_class(str(path))


def test_an_unknown_class_lists_the_nearest_or_all() -> None:
    """A slip of the finger gets the name that was meant, anything else the list."""
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_class("pi4")
    assert str(caught.value) == "class 'pi4' is unknown; did you mean 'pi-4'?"
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_class("zzz")
    assert f"class 'zzz' is unknown; known: {', '.join(dp.class_names())}" == str(caught.value)
    assert isinstance(caught.value, PotluckError)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """The path and the reason, nothing else."""
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_class(tmp_path / "no.toml")
    assert f"{tmp_path / 'no.toml'}: No such file or directory" == str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        (
            "training_w = {",
            "trainign_w = {",
            "trainign_w",
            "key 'trainign_w' is unknown; did you mean 'training_w'?",
        ),
        (
            "habit_share = {",
            "habit_shar = {",
            "habit_shar",
            "key 'habit_shar' in [day] is unknown; did you mean 'habit_share'?",
        ),
        (
            "idle_w = { value = 1.6",
            "idle_w = { valeu = 1.6",
            "idle_w",
            "key 'valeu' in [idle_w] is unknown; did you mean 'value'?",
        ),
        (
            "idle_w = { value = 1.6",
            "idle_w = { value = -1.6",
            "idle_w",
            "idle_w: expected float >= 0.0; it is -1.6",
        ),
        (
            "idle_w = { value = 1.6",
            "idle_w = { value = 99.0",
            "#",
            "file: training_w 7.2 is below idle_w 99.0",
        ),
        ("[day]", "[days]", "[days]", "key 'days' is unknown; did you mean 'day'?"),
        ('name = "pi-4"', "name = 4", "name", "name: expected str, got int; it is 4"),
        (
            "[1.0, 1.0,",
            "[1.0,",
            "ready_by_hour",
            (
                "[day] ready_by_hour: expected array of length >= 24; it is "
                "[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,..."
            ),
        ),
    ],
)
def test_a_broken_class_says_where_and_what(
    tmp_path: Path, old: str, new: str, at: str, expected: str
) -> None:
    """File, line, key, and the nearest known key."""
    text = PI_4.replace(old, new)
    assert text != PI_4
    path = written(tmp_path, text)
    with pytest.raises(dp.ProfileError) as caught:
        dp.load_class(path)
    assert f"{path}:{line_of(text, at)}: {expected}" == str(caught.value)


@pytest.mark.parametrize(
    "bare",
    ["reboots_per_day = 0.01", "reboots_per_day = [0.01]"],
)
def test_a_number_without_a_source_is_refused(tmp_path: Path, bare: str) -> None:
    """The error shows how a source is written."""
    line = line_of(PI_4, "reboots_per_day")
    kept = PI_4.splitlines()
    kept[line - 1] = bare
    path = written(tmp_path, "\n".join(kept))
    with pytest.raises(dp.ProfileError, match="reboots_per_day") as caught:
        dp.load_class(path)
    assert str(caught.value).startswith(f"{path}:{line}: reboots_per_day")
    if "[" not in bare:
        assert "has no source; write reboots_per_day = { value = " in str(caught.value)


@pytest.mark.parametrize("source", ["", "  ", "estimate", "Estimate: "])
def test_an_empty_source_or_a_bare_estimate_is_refused(tmp_path: Path, source: str) -> None:
    """An estimate that does not say why is no source."""
    line = line_of(PI_4, "idle_w")
    kept = PI_4.splitlines()
    kept[line - 1] = f'idle_w = {{ value = 1.6, source = "{source}" }}'
    path = written(tmp_path, "\n".join(kept))
    with pytest.raises(dp.ProfileError, match=rf":{line}: \[idle_w\] source: ") as caught:
        dp.load_class(path)
    assert "\n" not in str(caught.value)


def test_the_how_to_shows_the_shipped_classes() -> None:
    """The table in the docs is the one that class_table() prints; paste that when this fails."""
    assert dp.class_table() in HOW_TO.read_text(encoding="utf-8")
