"""Results name the code that made them; pages say where it has moved; one arm of each page is made again and compared."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess

import pytest

from examples.research import kept_runs, layer_search, main_job, nested_sizes, provenance, recovery, shape_search
from examples.research.claims.claim_command import OneArm, made_again
from examples.research.claims.claim_results import CONFIGS, EMBEDDED, RESULTS, STORIES, code_of, results_of
from examples.research.claims.study import sources_of
from examples.research.pages import pages
from examples.research.provenance import (
    SAME,
    check_made_again,
    code_digest,
    confirm,
    fingerprint,
    is_code_of,
    is_current,
    reached,
    stale_note,
    with_record,
)
from examples.research.shared import EXAMPLES

CODE = '''
from dataclasses import field

def loss(rate: float = 0.5, steps=field(default=3, metadata={"help": "steps"})):
    """What it is."""
    if rate < 0:
        raise ValueError(f"`rate` is {rate}")
    warnings.warn("small", stacklevel=2)
    return rate * 2
'''
HARMLESS = {
    "a docstring": ('"""What it is."""', '"""Something else."""'),
    "a comment": ("return rate * 2", "return rate * 2  # twice"),
    "an annotation": ("rate: float", "rate: int"),
    "the text of an error": ("`rate` is {rate}", "no {rate}"),
    "a warning": ('"small"', '"little"'),
    "help": ('"help": "steps"', '"help": "more"'),
    "a line break": ("return rate * 2", "return (\n        rate * 2\n    )"),
}
OTHER = {
    "a number": ("* 2", "* 3"),
    "a default": ("= 0.5", "= 0.6"),
    "a condition": ("rate < 0", "rate <= 0"),
    "a kind of error": ("ValueError", "TypeError"),
}
QUICK_SECONDS = 6.0  # of an arm, for the default suite


def digest(changed: tuple[str, str] = ("", "")) -> str:
    assert changed[0] in CODE
    return fingerprint(ast.parse(CODE.replace(*changed)))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_number_does_not_count(name):
    assert digest(HARMLESS[name]) == digest()


@pytest.mark.parametrize("name", OTHER)
def test_what_may_change_a_number_counts(name):
    assert digest(OTHER[name]) != digest()


def test_an_entry_reaches_what_it_needs_and_no_page():
    found, rooms = reached("examples.research.claims.llm_surgeon_1_update", ["runs"])
    names = {name for _, name in found}
    assert {"measure", "updated", "kobd", "prune_units", "Study", "best_rate", "SourceResults"} <= names
    assert not names & {"rise_table", "draw_rises", "table", "checks", "markdown_table"} and "sparsity" in rooms
    found, rooms = reached("examples.research.main_job", ["MainJob"])
    assert {"MainJob", "stdlib_domains", "Study"} <= {name for _, name in found} and "sparsity" not in rooms
    with pytest.raises(ValueError, match="examples.research.bench has no nothing"):
        code_digest("examples.research.bench", ("nothing",))


def test_the_digest_follows_code_and_settings(tmp_path, monkeypatch):
    config = tmp_path / "a.yaml"
    config.write_text("settings: {seeds: [0]}\nsmall: {seeds: [1]}\n")
    first = code_digest("examples.research.bench", ("main",), config)
    config.write_text("# a word\nsettings:\n  seeds: [0]\nsmall: {}\n")
    code_digest.cache_clear()
    assert code_digest("examples.research.bench", ("main",), config) == first
    config.write_text("settings: {seeds: [2]}\n")
    code_digest.cache_clear()
    assert code_digest("examples.research.bench", ("main",), config) != first
    code_digest.cache_clear()
    before = code_digest("examples.research.bench", ("main",))
    monkeypatch.setattr(provenance, "_room", lambda name: "moved" if name == "pruning" else "as it was")
    code_digest.cache_clear()
    assert code_digest("examples.research.bench", ("main",)) != before
    code_digest.cache_clear()


def test_a_page_says_where_the_code_has_moved():
    one, other = {"commit": "abc", "date": "2026-11-24", "digest": "1"}, {"commit": "def+", "date": "x", "digest": "2"}
    assert stale_note([one], "1", "make") == "" and is_current([one], "1")
    again = one | {"confirmed": {"commit": "ghi", "date": "x", "digest": "4"}}
    assert is_current([again], "1") and is_current([again], "4") and not is_current([again, one], "4")
    note = (
        "> The code that these numbers depend on has changed since they were made (commit abc (2026-11-24)): they may"
    )
    assert stale_note([one], "2", "make") == f"{note} differ today. Run again: `make`."
    assert stale_note([one], "3", "make") == stale_note([one], "2", "make")  # once stale, the page stays as it is
    assert "commit abc (2026-11-24) and def+ (x)" in stale_note([one, other], "2", "make")
    for without in ([], None, [provenance.BEFORE], [one, provenance.BEFORE]):
        assert stale_note(without, "1", "make").startswith("> These numbers were made before results named their code")
    assert with_record([one], {**one, "commit": "new"}) == [one] and with_record([one], other) == [one, other]
    assert provenance.noted("> note", "# Title\n\ntext\n") == "# Title\n\n> note\n\ntext\n"
    assert provenance.noted("", "# Title\n\ntext\n") == "# Title\n\ntext\n"
    assert provenance.made_by([], "a run") == "" and provenance.made_by([one, other], "a run") == (
        "Code: abc (2026-11-24), def+ (x)."
    )
    same = "; ghi made a run again, and found the same within 0.1 %."
    assert provenance.made_by([again, again], "a run") == "Code: abc (2026-11-24)" + same
    record = provenance.code_record("1")
    assert record["digest"] == "1" and set(record) == set(one)


def test_pages_say_what_is_kept_and_whether_the_code_has_moved_since():
    wrong = [str(path.name) for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert not wrong, f"{wrong} are not what is kept, or do not say that their code has moved: {provenance.REBUILD}"


# One arm of each page again


def kept_claims() -> list:
    """Claims by the seconds of their cheapest arm: those of seconds are in the default suite."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        sources = json.loads(path.read_text())["sources"]
        seconds = min(run["run_seconds"] for run in sources[cheapest_source(sources)]["runs"])
        marks = [] if seconds <= QUICK_SECONDS else [pytest.mark.slow]
        found.append(pytest.param(path.stem, marks=marks))
    return found


def cheapest_source(sources) -> str:
    return STORIES if STORIES in sources else next(iter(sources))


@pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:Even one held-out sample", "ignore:.*calibration text has",
    "ignore:The learned masks have not met the target", "ignore:Domain .* now gets",
)  # fmt: skip
@pytest.mark.parametrize("name", kept_claims())
def test_one_arm_of_a_claim_again(name, shared_data, capsys):
    module = importlib.import_module(f"examples.research.claims.{name}")
    path = RESULTS / f"{name}.json"
    sources = {source.name: source for source in results_of(path)}
    if not is_current(next(iter(sources.values())).code, code_of(module.CLAIM)):
        pytest.skip("stale, as its page says: run it again")
    stories = shared_data / "models" / "stories260K", str(shared_data / "data" / "tinystories")
    places = sources_of(CONFIGS / f"{name}.yaml", stories, str(shared_data / "data" / "redpajama_sample"))
    chosen = cheapest_source(sources)
    study = OneArm(module.CLAIM, chosen, *places[chosen], sources[chosen].settings, path)
    for one in made_again(module, [study]):
        check_made_again(*one)
    assert f"{name}, {chosen}" in capsys.readouterr().out


def test_one_cut_of_the_main_job_again():
    if not main_job.RESULTS.is_file():
        pytest.skip("it was not run yet")
    source = next((one for one in results_of(main_job.RESULTS) if one.name == EMBEDDED), None)
    if source is None or not is_current(source.code, main_job.todays_code()):
        pytest.skip("stale, as its page says: run it again")
    place = EXAMPLES / "embedded" / "model"
    job = main_job.MainJob(main_job.CLAIM, source.name, place, None, source.settings, main_job.RESULTS)
    kept = source.select(arm="random", budget=main_job.EQUAL_TOKENS, seed=0)[0]
    _, cost = job.cut({name: kept[name] for name in ("arm", "budget", "rate", "seed")})
    assert cost["before"] == pytest.approx(kept["before"], rel=SAME)


def test_one_cut_of_the_ways_of_recovery_again(shared_data):
    source = next(one for one in results_of(recovery.RESULTS) if one.name == STORIES)
    if not is_current(source.code, recovery.todays_code()):
        pytest.skip("stale, as its page says: run it again")
    place = shared_data / "models" / "stories260K", str(shared_data / "data" / "tinystories")
    study = recovery.Recovery(recovery.CLAIM, source.name, *place, source.settings, recovery.RESULTS)
    (kept,) = source.select(arm="cut", seed=0)
    assert study.judged(study.cut(0))["mean"] == pytest.approx(kept["mean"], rel=SAME)


def test_results_are_confirmed_where_all_sources_are_compared_and_all_numbers_are_the_same():
    made = []

    def made_again(*numbers):
        for number in numbers:
            made.append(number)
            yield "a", [1.0], [number]

    kept = {"code": [{"digest": "1"}, {"digest": "2"}]}
    with pytest.raises(ValueError, match="Results of b, c are kept, too, and are not compared"):
        confirm(kept, "3", made_again(1.0), {"c", "a", "b"}, {"a", "d"})
    assert not made
    with pytest.raises(ValueError, match=r"a: \[1.0\] was, \[1.01\] is"):
        confirm(kept, "3", made_again(1.0, 1.01, 1.0), {"a"}, {"a"})
    assert made == [1.0, 1.01] and kept == {"code": [{"digest": "1"}, {"digest": "2"}]}
    confirm(kept, "3", made_again(1.0, 1.0 + SAME / 2))
    assert [one["confirmed"]["digest"] for one in kept["code"]] == ["3", "3"] and is_current(kept["code"], "3")


@pytest.mark.parametrize("study", [shape_search, layer_search, nested_sizes])
def test_results_that_are_kept_run_by_run_are_read_as_they_were_written(study, tmp_path):
    kept = kept_runs.read(study.RESULTS)
    kept_runs.write(tmp_path / "kept.json", kept)
    assert kept_runs.read(tmp_path / "kept.json") == kept
    run = {"key": 1, "loss": 2.0}
    assert kept_runs.find(kept["runs"], key=1) is None
    kept_runs.add(tmp_path / "kept.json", kept, "runs", run, "new")
    again = kept_runs.read(tmp_path / "kept.json")
    assert again == kept and again["runs"][-1] == run == kept_runs.find(again["runs"], key=1)
    assert again["code"][-1]["digest"] == "new" and kept_runs.read(tmp_path / "none.json", "runs") == {"runs": []}


def test_a_study_of_several_sources_is_confirmed_with_all_of_them(tmp_path, monkeypatch):
    kept = {
        "code": [{"digest": "1"}],
        "runs": [{"source": name, "loss": 2.0} for name in ("stories260k", "family-128")],
    }
    kept_runs.write(tmp_path / "kept.json", kept)
    for name, value in {
        "RESULTS": tmp_path / "kept.json", "PAGE": tmp_path / "kept.md", "Source": lambda name, *place: name,
        "made_again": lambda name, kept: [(name, [2.0], [kept_runs.find(kept["runs"], source=name)["loss"]])],
        "page": lambda kept: "whole",
    }.items():  # fmt: skip
        monkeypatch.setattr(shape_search, name, value)
    with pytest.raises(ValueError, match="Results of family-128 are kept, too"):
        shape_search.run_study(shape_search, ["confirm", "--stories", "model", "text"])
    assert kept_runs.read(tmp_path / "kept.json") == kept
    shape_search.run_study(shape_search, ["confirm", "--stories", "model", "text", "--data_dir", "domains"])
    (code,) = kept_runs.read(tmp_path / "kept.json")["code"]
    assert code["confirmed"]["digest"] == shape_search.todays_code() and (tmp_path / "kept.md").read_text() == "whole"


def test_code_is_known_by_its_commit():
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=provenance.ROOT, check=False).returncode != 0
    assert is_code_of("HEAD") or changed
    assert not is_code_of("0" * 40) and not is_code_of(None)


def test_of_what_a_study_asks_for_the_cheapest_is_made_again(tmp_path):
    claim = importlib.import_module("examples.research.claims.llm_surgeon_1_update").CLAIM
    study = OneArm(claim, "known", "", "", {}, tmp_path / "out.json")
    study.runs = [
        {"arm": name, "mean": mean, "run_seconds": seconds}
        for name, mean, seconds in [("not asked for", 1.0, 2.0), ("b", 3.0, 9.0), ("c", 4.0, 5.0)]
    ]

    class Module:
        @staticmethod
        def runs(study):
            study.run({"arm": "b"}, lambda: {"mean": 0.0})
            study.run({"arm": "c"}, lambda: {"mean": 5.0})

    ((what, was, now),) = made_again(Module, [study])
    assert "{'arm': 'c'}" in what and (was, now) == ([4.0], [5.0])


def test_an_arm_that_gives_another_number_is_found(tmp_path):
    claim = importlib.import_module("examples.research.claims.llm_surgeon_1_update").CLAIM
    study = OneArm(claim, "known", "", "", {}, tmp_path / "out.json")
    kept = {"arm": "a", "mean": 1.0, "run_seconds": 2.0}
    study.runs = [kept, {"arm": "b", "mean": 3.0, "run_seconds": 9.0}]
    assert study.run({"arm": "a"}, lambda: {"mean": 1.0 + SAME / 2}) is kept
    assert study.run({"arm": "b"}, lambda: {"mean": 9.0})["mean"] == 3.0
    check_made_again(*study.made_again())
    study.asked.clear()
    study.run({"arm": "a"}, lambda: {"mean": 1.01})
    with pytest.raises(ValueError, match=r"mean: \[1.0\] was, \[1.01\] is"):
        check_made_again(*study.made_again())
    with pytest.raises(ValueError, match="out.json lacks .*'c'.*, which the study makes today"):
        study.run({"arm": "c"}, dict)
