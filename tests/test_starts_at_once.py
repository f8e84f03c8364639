"""What needs neither torch nor transformers does not wait for them: the package, help, and refusals."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import pytest
from transformers import HfArgumentParser, LlamaConfig

import hf_shear
from hf_shear import ShearTrainingArguments, runs
from hf_shear.cli import main
from hf_shear.core.lazy_names import lazy_names
from hf_shear.masks import STRATEGIES
from hf_shear.runs.flag_help import GROUPS, grouped_help
from hf_shear.runs.flags import NEEDS_A_WORD, flags_of
from hf_shear.runs.source_fields import UNKNOWN, TrainingFlags
from hf_shear.training.recovery_methods import RECOVERY_METHODS

HEAVY = ("torch", "transformers", "datasets", "numpy", "accelerate")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_refusals_import_neither_torch_nor_transformers(tmp_path):
    commands = [
        ["--help"], ["shrink"], ["prune", "--help"], ["learn", "--help"], ["recover", "--help-all"],
        *[[verb] for verb in ("inspect", "export", "evaluate", "plan", "report", "card", "push", "interleave")],
        ["learn", "a", "--hiden_size", "3"], ["learn", "a", "--learning_rate", "fast"],
        ["learn", "a", "--mask_tokens", "-3"],
        ["prune", "a", "--output_dir", str(tmp_path)], ["recover", "a", "--bf16", "perhaps"],
        ["learn", "a", "--config", str(tmp_path / "nowhere.yaml")],
    ]  # fmt: skip
    found = run_python(
        "import sys\n"
        "from hf_shear.cli import main\n"
        f"codes = [main(words) for words in {commands!r}]\n"
        f"print(codes, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    codes = [0, 2, 0, 0, 0, *[2] * (len(commands) - 5)]
    assert found.splitlines()[-1] == f"{codes} []"


def test_inspect_of_a_config_loads_no_code_of_models(tmp_path):
    LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=128, num_hidden_layers=2).save_pretrained(
        tmp_path
    )
    found = run_python(
        "import sys\n"
        "from hf_shear.cli import main\n"
        f"assert main(['inspect', {str(tmp_path)!r}, '--intermediate_size', '64']) == 0\n"
        "heavy = ('transformers.modeling_utils', 'transformers.trainer', 'datasets', 'scipy', 'hf_shear.modeling')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert "Mask learning needs about" in found and found.splitlines()[-1] == "[]"


AUTO = """
from transformers import AutoConfig, AutoModelForCausalLM
assert AutoConfig.for_model("llama").model_type == "llama" and "hf_shear.modeling" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(FOLDER)
assert type(model).__name__ == "ShearingLlamaForCausalLM"
assert type(AutoConfig.for_model("hf_shear_qwen2")).__name__ == "ShearingQwen2Config"
"""
"""What transformers makes of a masked checkpoint, once hf_shear is imported."""


def test_the_package_loads_a_name_when_it_is_asked_for(masked_folder):
    found = run_python(
        "import sys, hf_shear\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert set(hf_shear.__all__) <= set(dir(hf_shear)) and hf_shear.__version__\n"
        + AUTO.replace("FOLDER", repr(str(masked_folder)))
        + "from hf_shear import TargetShape\n"
        "assert 'hf_shear.training' not in sys.modules and hf_shear.TargetShape is TargetShape\n"
        "from hf_shear import *\n"
        "assert ShearTrainer is hf_shear.training.ShearTrainer\n"
        "assert all(name in globals() for name in hf_shear.__all__)\n"
        "assert hf_shear.report.__name__ == 'hf_shear.report'"
    )
    assert found == ""


def test_auto_classes_know_masked_checkpoints_when_transformers_came_first(masked_folder):
    run_python(
        "import sys, transformers.models.auto.modeling_auto, hf_shear\n"
        + AUTO.replace("FOLDER", repr(str(masked_folder)))
    )


def test_a_name_that_is_not_there_and_pickles():
    with pytest.raises(AttributeError, match="module 'hf_shear' has no attribute 'Pruner'"):
        hf_shear.Pruner  # noqa: B018
    settings = hf_shear.MaskSettings(seed=3)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("package", [hf_shear, runs], ids=["hf_shear", "runs"])
def test_every_name_is_loaded_from_where_the_types_say(package):
    load, names = lazy_names(package.__name__)
    assert set(package.__all__) <= set(names())
    for name in package.__all__:
        assert load(name) is getattr(package, name)


def test_training_flags_read_in_the_source_are_those_of_the_class():
    real = {field.name: field for field in dataclasses.fields(ShearTrainingArguments) if field.init}
    read = {field.name: field for field in dataclasses.fields(TrainingFlags.as_read())}
    assert read.keys() == real.keys()
    for name, field in read.items():
        assert field.metadata["help"] == real[name].metadata["help"], name
        assert field.default in (real[name].default, UNKNOWN) or real[name].default is dataclasses.MISSING, name
    unknown = {name for name, field in read.items() if field.default == UNKNOWN}
    assert unknown <= {"optim", "include_for_metrics"}


def test_flags_are_those_of_transformers_parser():
    parser = HfArgumentParser(ShearTrainingArguments)
    theirs = {flag: action for action in parser._actions for flag in action.option_strings if "-" not in flag[2:]}
    ours = {f"--{flag.name}": flag for flag in flags_of(ShearTrainingArguments)}
    assert ours.keys() == theirs.keys() - {"--help", "-h"}
    for name, flag in ours.items():
        action = theirs[name]
        assert flag.alone is NEEDS_A_WORD if action.nargs in (None, "+") else flag.alone == action.const, name
        assert list(flag.choices or ()) == list(action.choices or ()), name
        if name != "--debug":  # one word, which transformers splits itself
            assert flag.several == (action.nargs == "+"), name


def test_help_texts_name_what_there_is():
    texts = {field.name: field.metadata.get("help", "") for field in dataclasses.fields(ShearTrainingArguments)}
    for name, strategy in STRATEGIES.items():
        assert f"{strategy.learning_rate:g} for {name}" in texts["mask_learning_rate"]
        assert f"{strategy.budget_warmup_ratio:g} for {name}" in texts["budget_warmup_ratio"].replace("  ", " ")
    assert all(f"'{name}'" in texts["recovery_method"] for name in RECOVERY_METHODS)


def test_every_flag_of_ours_is_in_a_group():
    grouped = [name for usual, more in GROUPS.values() for name in (usual + " " + more).split()]
    assert len(grouped) == len(set(grouped))
    own = {
        field.name for field in dataclasses.fields(runs.ShearArguments)
    } | ShearTrainingArguments.__annotations__.keys()
    others = {"ignore_data_skip", "remove_unused_columns"}  # that nobody should change
    assert {name for name in own if not name.startswith("_")} - others <= set(grouped)
    shown = "\n".join(grouped_help((runs.ShearArguments, ShearTrainingArguments), whole=True))
    assert all(f"  --{field.name} " in shown for field in dataclasses.fields(ShearTrainingArguments))


@pytest.mark.parametrize("debug", [False, True])
def test_a_warning_is_a_sentence(debug):
    code = (
        "import warnings\n"
        "from hf_shear.core import run_command_line\n"
        f"run_command_line('hf-shear', lambda: warnings.warn('Text is short.', UserWarning), {debug})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    if debug:
        assert "<string>:3: UserWarning: Text is short." in told
    else:
        assert told == "hf-shear: warning: Text is short.\n"


def test_a_shell_completes_verbs_flags_and_choices(capsys, tmp_path):
    pytest.importorskip("shtab", reason="it is in the extra `completion`")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "hf-shear"
    script.write_text(capsys.readouterr().out)
    for words, found in (
        (["hf-shear", "le"], "learn"),
        (["hf-shear", "learn", "--mask_m"], "--mask_method"),
        (["hf-shear", "learn", "--mask_method", "re"], "relaxed_topk"),
    ):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_hf_shear; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"source {script}; {line}"], capture_output=True, text=True)
        assert done.stdout.strip() == found
    assert main(["--print-completion", "cmd"]) == 2
    assert "`--print-completion` needs one of bash" in capsys.readouterr().err
