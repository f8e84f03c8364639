"""Flags and a YAML file are parsed alike: the same types, the same errors, and flags win."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from hf_shear import ShearTrainingArguments
from hf_shear.core import UsageError, check_ranges
from hf_shear.runs import parse_arguments


@dataclass
class Arguments:
    rate: float = 0.5
    steps: int = 10
    name: str | None = None
    flag: bool = True
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@dataclass
class Others:
    other: str = "a"


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_the_file_gives_numbers_lists_and_switches(config):
    path = config("rate: 1e-4\nsteps: 3\nname: héllo wörld\nflag: false\nsizes: [4, 5, 6]\nother: b\n")
    first, second = parse_arguments((Arguments, Others), ["--config", path])
    assert first == Arguments(1e-4, 3, "héllo wörld", False, [4, 5, 6])
    assert isinstance(first.rate, float)
    assert second == Others("b")


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_flags_override_the_file_wherever_they_stand(config, form):
    path = config("rate: 0.1\nsteps: 3\n")
    flag = form.format(path).split()
    for arguments in ([*flag, "--rate", "2e-3"], ["--rate=2e-3", *flag]):
        (found,) = parse_arguments(Arguments, arguments)
        assert (found.rate, found.steps) == (2e-3, 3)


def test_no_value_leaves_the_default(config):
    (found,) = parse_arguments(Arguments, ["--config", config("rate:\nname: null\n")])
    assert found == Arguments()
    (found,) = parse_arguments(Arguments, ["--config", config("")])
    assert found == Arguments()


def test_a_mapping_becomes_json(config, tmp_path):
    path = config(f"output_dir: {tmp_path}\nuse_cpu: true\nmixture_weights:\n  a b: 0.25\n  c: 3\n")
    (found,) = parse_arguments(ShearTrainingArguments, ["--config", path])
    assert found.mixture_weights == {"a b": 0.25, "c": 3}
    assert found.use_cpu is True


def test_the_arguments_of_the_command_line_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["shear.py", "--steps", "7"])
    assert parse_arguments(Arguments)[0].steps == 7


def test_a_default_file_unless_a_flag_says_otherwise(config):
    path = config("steps: 3\n")
    options = {"default_config": path, "unless": ["name"]}
    assert parse_arguments(Arguments, [], **options)[0].steps == 3
    assert parse_arguments(Arguments, ["--rate", "1"], **options)[0] == Arguments(rate=1.0, steps=3)
    assert parse_arguments(Arguments, ["--name", "x"], **options)[0] == Arguments(name="x")
    assert parse_arguments(Arguments, ["--name=x"], **options)[0] == Arguments(name="x")


def test_a_flag_takes_the_place_of_entries_that_say_the_same(config):
    options = {"default_config": config("steps: 3\nrate: 9\n"), "instead": {"name": ["steps"]}}
    assert parse_arguments(Arguments, [], **options)[0] == Arguments(steps=3, rate=9.0)
    assert parse_arguments(Arguments, ["--name", "x"], **options)[0] == Arguments(name="x", rate=9.0)


def test_a_named_file_takes_the_place_of_the_default_one(config, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text("steps: 3\nrate: 9\n")
    found = parse_arguments(Arguments, ["--config", config("steps: 4\n")], default_config=default)[0]
    assert (found.steps, found.rate) == (4, 0.5)


@pytest.mark.parametrize("text", ["stepz: 3\n", "step: 3\n"])
def test_an_unknown_name_is_refused_in_the_file(config, text):
    name = text.split(":")[0]
    with pytest.raises(UsageError, match=f"`--{name}` in '.*config.yaml', line 1, is no argument of .* Did you mean"):
        parse_arguments(Arguments, ["--config", config(text)])


def test_an_unknown_flag_is_refused_and_none_is_abbreviated():
    with pytest.raises(ValueError, match="--step"):
        parse_arguments(Arguments, ["--step", "3"])


@pytest.mark.parametrize("text", ["steps: many\n", "steps: 1.5\n", "flag: perhaps\n", "rate: [1, 2]\n"])
def test_a_wrong_type_is_refused(config, text):
    name = text.split(":")[0]
    with pytest.raises(UsageError, match=rf"`{name}` in '.*config.yaml', line 1, (must be|takes one value)"):
        parse_arguments(Arguments, ["--config", config(text)])


def test_the_last_of_a_flag_given_twice_counts():
    assert parse_arguments(Arguments, ["--steps", "3", "--rate", "1", "--steps=-4"]) == (Arguments(rate=1.0, steps=-4),)


def test_bad_files_are_refused(config, tmp_path):
    missing = str(tmp_path / "missing.yaml")
    with pytest.raises(ValueError, match=r"`--config` '.*missing.yaml' is not a file"):
        parse_arguments(Arguments, ["--config", missing])
    with pytest.raises(ValueError, match="`--config` needs the path of a YAML file"):
        parse_arguments(Arguments, ["--config"])
    with pytest.raises(ValueError, match="`--config` '.*config.yaml' must hold names and values, but it holds a list"):
        parse_arguments(Arguments, ["--config", config("- steps\n- 3\n")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\nname: a\nsteps: 4\n", "line 3: 'steps' is given twice, first in line 1. Keep one."),
        ("other: {a: 1, a: 2}\n", "line 1: 'a' is given twice"),
        ("steps: [3\n", "is not valid YAML: line 2, "),
        ("steps: 3\n\tname: a\n", "is not valid YAML: line 2, "),
        (
            "name: !!python/object/apply:os.system [ls]\n",
            "is not valid YAML: line 1, could not determine a constructor",
        ),
        ("name: 2026-13-45\n", "holds a value that is not what it looks like: .*Put it in quotes"),
        ("steps: !!int many\n", "holds a value that is not what it looks like"),
        ("1: 2\n", "has the key 1, which is no name of an argument"),
        ("sizes: [{a: 1}]\n", "`sizes` in '.*config.yaml', line 1, must be a text, a number, .* but it holds a dict"),
        ("sizes: [[1, 2], [3]]\n", "line 1, must be .* but it holds a list"),
        ("sizes:\n- 1\n- null\n", "line 1, must be .* but it holds a NoneType"),
        ("name: a\nsizes: [--flag, false]\n", "`sizes` in '.*', line 2, must be a whole number, but it is '--flag'"),
        ("other: {a: 2026-01-02}\n", "`other` in '.*', line 1, holds what JSON can not"),
        ("name: !!binary aGk=\n", "line 1, must be .* but it holds a bytes"),
        ("config: other.yaml\n", "`config` in '.*', line 1, names another file, but only a flag can"),
        ("3\n", "must hold names and values, but it holds a int"),
        ("name: &a [*a]\n", "line 1: an anchor must not hold an alias of itself"),
        ("name: " + "[" * 5000 + "]" * 5000, "is nested too deep to be read"),
        ("name: " + "x" * 2**20, "has more than 1,048,576 characters"),
        ("\nrate: much\n", "`rate` in '.*config.yaml', line 2, must be a number, but it is 'much'"),
    ],
    ids=range(20),
)
def test_what_a_file_may_not_hold_is_said_with_its_line(config, text, message):
    with pytest.raises(UsageError, match=message):
        parse_arguments((Arguments, Others), ["--config", config(text)])


def test_no_text_and_no_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"name: h\xe9llo\n")
    with pytest.raises(UsageError, match="config.yaml' is no text in UTF-8 .* Save it as UTF-8"):
        parse_arguments(Arguments, ["--config", str(path)])
    with pytest.raises(UsageError, match="`--config` '.*' is not a file"):
        parse_arguments(Arguments, ["--config", str(tmp_path)])


def test_an_alias_bomb_ends_at_once(config):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    start = time.perf_counter()
    with pytest.raises(UsageError, match="line 5: with its aliases written out it holds more than 10,000 values"):
        parse_arguments(Arguments, ["--config", config("\n".join(levels))])
    assert time.perf_counter() - start < 1


def test_few_aliases_and_merged_names_are_fine(config):
    path = config("sizes: &s [4, 5]\nname: &n hello\nother: *n\n")
    assert parse_arguments((Arguments, Others), ["--config", path]) == (
        Arguments(name="hello", sizes=[4, 5]),
        Others("hello"),
    )


def test_a_value_is_never_a_flag(config):
    (found,) = parse_arguments(Arguments, ["--config", config("name: --rate=9\n")])
    assert found == Arguments(name="--rate=9")


def test_where_a_refused_value_stands(config):
    @dataclass
    class Checked:
        seed: int = 0
        rounds: int = 1

        def __post_init__(self):
            check_ranges(self)

    path = config("rounds: 2\nseed: -1\n")
    with pytest.raises(UsageError, match="`seed` must be between .*, but it is -1. .* It stands in '.*yaml', line 2.$"):
        parse_arguments(Checked, ["--config", path])
    with pytest.raises(UsageError) as caught:  # the flag wins, so the file is not at fault
        parse_arguments(Checked, ["--config", path, "--seed", "-2"])
    assert "it is -2" in str(caught.value) and "yaml" not in str(caught.value)


def test_two_files_are_refused(config):
    path = config("steps: 3\n")
    with pytest.raises(ValueError, match="`--config` is given more than once"):
        parse_arguments(Arguments, ["--config", path, f"--config={path}"])


@pytest.mark.parametrize("flag", ["--steps", "--steps=3"])
def test_a_refused_flag_says_what_to_do(config, flag):
    with pytest.raises(ValueError, match="`--steps` can not be given here: use --rate."):
        parse_arguments(Arguments, [flag, "3"][: 2 - ("=" in flag)], refused={"steps": "use --rate"})
    with pytest.raises(ValueError, match="`--steps` can not be given here: use --rate."):
        parse_arguments(Arguments, ["--config", config("steps: 3")], refused={"steps": "use --rate"})


def test_dashes_are_underscores(config):
    """argparse takes both; what depends on a flag must too."""

    @dataclass
    class Sizes:
        hidden_size: int | None = None
        preset_name: str | None = None

    path = config("hidden_size: 7")
    (found,) = parse_arguments(Sizes, ["--preset-name", "a"], default_config=path, unless=["preset_name"])
    assert found.hidden_size is None
    options = {"default_config": path, "instead": {"preset_name": ["hidden_size"]}}
    (found,) = parse_arguments(Sizes, ["--preset-name", "a"], **options)
    assert found.hidden_size is None
