"""The report of a run: one well-formed page that fetches nothing, shows the results' own numbers, and hides secrets."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser

import pytest

from hf_shear.cli import main
from hf_shear.core import redact_command, redact_tokens
from hf_shear.core.results import SHAPE_NAMES, check_results, model_record
from hf_shear.report import write_html_report
from hf_shear.report.html_charts import MAX_POINTS, Series, line_chart, linear_ticks
from hf_shear.report.html_page import NO_BREAK, duration, short_count
from hf_shear.report.html_report import html_report

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
TOKEN = "hf_" + "aB3" * 9
SECTIONS = [
    "Shape", "What was kept", "Comparison", "Evaluation", "Speed", "Loss curves", "Domains",
    "Expected and target sizes", "Command and versions",
]  # fmt: skip


class Page(HTMLParser):
    """Refuses tags that do not nest and whatever a browser would fetch or run; collects the visible text."""

    def __init__(self, content: str):
        super().__init__()
        self.stack, self.words, self.tags, self.labels, self.titles = [], [], [], [], []
        self.feed(content)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [key for key, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice: {tag} {attrs}"
        assert tag not in {"script", "link", "iframe", "img", "object", "embed", "base", "form", "image", "use"}
        for key, value in attrs:
            assert not key.startswith("on") and key not in {"src", "srcset", "href", "xlink:href", "action"}, (tag, key)
            if key == "style":
                check_style(value)
            if key == "aria-label":
                self.labels.append(value)
            if key == "title":
                self.titles.append(value)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack}"
        self.stack.pop()
        if tag in {"td", "th", "div", "p", "h1", "h2", "h3", "li", "span", "dd", "dt", "figcaption", "b"}:
            self.words.append(" ")

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "style":
            check_style(data)
        else:
            self.words.append(data)


def check_style(style: str) -> None:
    assert "url(" not in style and "@import" not in style and "http" not in style, style[:200]


def numbers(domains, up: float) -> dict[str, float]:
    return {domain: 1.2345 + 0.111 * index + up for index, domain in enumerate(domains)}


def complete(domains=("code", "prose"), layers=5, heads=8, groups=4, hidden=64, intermediate=172, rows=6) -> dict:
    """Results in which every number is another one."""
    source = dict(zip(SHAPE_NAMES, (hidden, layers, heads, groups, intermediate), strict=True), head_dim=8)
    target = dict(zip(SHAPE_NAMES, (hidden // 2, layers - 1, heads // 2, groups // 2, intermediate // 2), strict=True))
    kept_layers = [layer for layer in range(layers) if layer != 1]
    per_group = heads // groups
    kept = {
        "layers": kept_layers,
        "hidden": list(range(0, hidden, 2)),
        "key_value_heads": {str(layer): list(range(groups // 2)) for layer in kept_layers},
        "heads": {str(layer): list(range(groups // 2 * per_group)) for layer in kept_layers},
        "intermediate": {str(layer): list(range(intermediate // 2 - layer % 2)) for layer in kept_layers},
    }
    small = target | {"head_dim": 8}
    history = [
        {
            "num_tokens": 1000 * (index + 1),
            "stage": "mask_learning" if index < rows // 2 else "recovery",
            "loss": numbers(domains, 2 - index / rows),
            "eval_tokens": 77,
            "mixture_weights": {domain: 1 / len(domains) for domain in domains},
            "reference_loss": numbers(domains, 0.05),
        }
        for index in range(rows)
    ]
    for row in history[: rows // 2]:
        row["expected_shape"] = {name: size + 0.25 for name, size in target.items()}
        row["target_shape"] = dict(target)
    baseline = model_record(small, 400_321, numbers(domains, 0.456), 8192)
    return {
        "source": model_record(source, 1_000_777, numbers(domains, 0), 8192),
        "pruned": model_record(small, 400_321, numbers(domains, 3.0), 8192),
        "recovered": model_record(small, 400_321, numbers(domains, 0.3), 8192) | {"learning_rate": 0.00321},
        "target_shape": target,
        "masks": {
            "expected_shape": {name: size + 0.13 for name, size in target.items()},
            "kept_below_half": dict.fromkeys(SHAPE_NAMES, 3),
            "gap": {name: 0.13 / size for name, size in target.items()},
        },
        "tokens": {"mask_learning": 3000, "recovery": 3333, "evaluation": 4444, "calibration": 515},
        "seconds": {
            "mask_learning": 61.0, "recovery": 30.0, "evaluation": 4.0, "export": 0.5, "baselines": 99.0, "total": 7384.0,
        },
        "baselines": {"taylor": baseline | {"tokens": 6333, "learning_rate": 0.00123}},
        "versions": {"python": "3.11.99", "torch": "2.13.0+x"},
        "seed": 4242,
        "kept": kept,
        "passes": {"mask_learning": dict.fromkeys(domains, 0.5), "recovery": dict.fromkeys(domains, 0.125)},
        "history": history,
        "command": f"accelerate launch examples/shear.py --output_dir 'a & b' --hub_token {TOKEN}",
        "recovery": {"method": "lora", "distillation": {"temperature": 2.5}},
    }  # fmt: skip


def evaluated(domains=("code", "prose")) -> dict:
    def side(name, up):
        perplexity = {
            "protocol": {"max_length": 1024},
            "domains": {
                domain: {
                    "loss": loss, "loss_interval": [loss - 0.021, loss + 0.022], "perplexity": math.exp(loss),
                    "bits_per_byte": loss / 3, "bits_per_byte_interval": [loss / 3 - 0.01, loss / 3 + 0.02],
                    "num_documents": 12, "num_tokens": 3456, "num_bytes": 9999,
                }
                for domain, loss in numbers(domains, up).items()
            },
            "mean_loss": 1.717 + up,
            "mean_bits_per_byte": 0.616 + up,
        }  # fmt: skip
        tasks = {"piqa": {"metric": "acc", "value": 0.567 + up, "standard_error": 0.0123, "num_items": 1838}}
        sizes = {"weight_bytes": 4_321_000, "kv_cache_bytes_per_token": 640, "dtype": "bfloat16"}
        return {"name": name, "perplexity": perplexity, "tasks": tasks} | sizes

    speed = {
        "device": "cpu", "dtype": "float32", "batch_size": 3, "prompt_length": 128, "new_tokens": 64, "rounds": 7,
        "source": {"prefill_tokens_per_second": 8123.4, "decode_tokens_per_second": 41.26},
        "pruned": {"prefill_tokens_per_second": 14002.1, "decode_tokens_per_second": 58.34},
        "prefill_ratio": {"median": 1.72, "low": 1.66, "high": 1.77},
        "decode_ratio": {"median": 1.41, "low": 1.37, "high": 1.46},
    }  # fmt: skip
    differences = {domain: {"loss": 0.2345, "interval": [0.2111, 0.2666]} for domain in domains}
    versions = {"lm_eval": "0.4.99"}
    pair = {"source": side("org/source", 0.0), "pruned": side("org/pruned", 0.1)}
    return pair | {"differences": differences, "speed": speed, "versions": versions}


def test_the_inputs_here_keep_the_contract():
    check_results(complete())


def test_the_page_is_well_formed_fetches_nothing_and_forbids_to():
    content = html_report(complete(), evaluated())
    page = Page(content)
    assert content.startswith("<!DOCTYPE html>")
    assert "default-src 'none'; style-src 'unsafe-inline'" in content
    assert 'name="viewport"' in content and "prefers-color-scheme:dark" in content
    assert re.findall(r"<h2>(.*?)</h2>", content) == SECTIONS
    assert page.tags.count("h1") == 1
    assert "http:" not in content and "https:" not in content


@pytest.mark.parametrize(
    "fetched",
    [
        "<p><img src=x></p>",
        "<script>1</script>",
        '<p style="background:url(x)"></p>',
        "<a href='//x'>x</a>",
        "<p><b></p>",
    ],
)
def test_a_page_that_fetches_or_is_broken_would_be_found(fetched):
    with pytest.raises(AssertionError):
        Page(fetched)


def test_numbers_are_those_of_the_results():
    results, evaluation = complete(), evaluated()
    text = Page(html_report(results, evaluation)).text
    for model in ("source", "pruned", "recovered"):
        record = results[model]
        expected = [f"{record['num_parameters']:,}", f"{record['mean']:.3f}", f"{math.exp(record['mean']):.2f}"]
        assert all(f" {number} " in text for number in expected), (model, expected)
        assert all(f"{loss:.3f}" in text for loss in record["loss"].values())
    row = results["baselines"]["taylor"]
    assert f"taylor 400,321 40.0 % {row['mean']:.3f} {math.exp(row['mean']):.2f} 6,333 0.00123" in text
    assert "recovered 400,321 40.0 %" in text and " 6,333 0.00321 " in text  # 3000 + 3333 tokens
    assert "hidden size 32.13 32 0.41 % 3" in text and "layers 4.13 4 3.25 % 3" in text
    assert "code 50.0 % 50.0 % 3.234 2.401 1.284 0.625" in text
    assert "2 h 03 min" in text and "mask learning 1 min 01 s 1 % 3,000 49.2" in text
    assert "Prefill: 1.72 times the source’s [1.66, 1.77]" in text and "41.3 tokens/s" in text
    assert "+0.234 [+0.211, +0.267]" in text or "+0.235 [+0.211, +0.267]" in text
    code = evaluation["source"]["perplexity"]["domains"]["code"]
    low, high = code["loss_interval"]
    assert f"code {code['loss']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "piqa acc 0.567 ± 0.012 0.667 ± 0.012 1,838" in text
    assert "4242" in text and "2.13.0+x" in text and "0.4.99" in text
    assert "LoRA adapters" in text and "temperature 2.5" in text
    assert f"4.32{NO_BREAK}MB".replace(NO_BREAK, " ") in text.replace(NO_BREAK, " ") and "640 B" in text.replace(
        NO_BREAK, " "
    )


def test_the_lowest_loss_of_the_trained_models_is_marked():
    content = html_report(complete())
    best = re.findall(r'<td class="best">([\d.]+)</td>', content)
    assert best == [f"{loss:.3f}" for loss in complete()["recovered"]["loss"].values()]


def test_the_map_shows_each_head_in_its_state():
    content = html_report(complete())
    heads = content[content.index("Attention heads kept") :]
    heads = heads[: heads.index("</svg>")]
    counts = {kind: path.count("M") for kind, path in re.findall(r'<path class="(\w+)" d="([^"]*)"', heads)}
    assert counts == {"kept": 16, "cut": 16}  # 4 layers with 2 of 4 groups of 2 heads
    results = complete()
    results["kept"]["heads"]["0"] = [0, 2]  # one head of each kept group goes
    content = html_report(results)
    assert content.count('<b class="gone"') == 2  # the layer that went, in both maps
    heads = content[content.index("Attention heads kept") :]
    counts = {kind: path.count("M") for kind, path in re.findall(r'<path class="(\w+)" d="([^"]*)"', heads)[:3]}
    assert counts == {"cut": 16, "group": 2, "kept": 14}
    assert "Layer 1 went as a whole." in content


def test_what_users_name_is_escaped_and_shortened():
    hostile = (
        "<script>alert(1)</script>",
        "x" * 200,
        "</div><img src=x onerror=y>",
        "a \"quote\" & 'more'",
        "домен\n\x00ü",
    )
    results, evaluation = complete(hostile), evaluated(hostile)
    results["baselines"]['<b onclick="x">'] = results["baselines"].pop("taylor")
    results["versions"]["<i>"] = "<u>1"
    results["command"] = "shear '</code><script>x</script>'"
    evaluation["source"]["name"] = "<iframe src=//x>"
    evaluation["source"]["tasks"] = {"<svg onload=x>": {"metric": "<a href=x>", "value": 0.5}}
    page = Page(html_report(results, evaluation))
    assert "<script>alert(1)</script>" in page.text and "домен" in page.text
    assert "x" * 61 not in page.text and "x" * 200 in page.titles
    assert "shear '</code><script>x</script>'" in page.text


def test_no_token_is_shown():
    domain = f"x {TOKEN}"
    results, evaluation = complete((domain, "b")), evaluated((domain, "b"))
    results["versions"]["torch"] = TOKEN
    evaluation["source"]["name"] = "a" * 28 + TOKEN + "b" * 40
    content = html_report(results, evaluation)
    assert "hf_aB3" not in content and "aB3aB3" not in content
    assert "--hub_token [redacted]" in content and "--output_dir" in content


@pytest.mark.parametrize(
    "command, shown",
    [
        ("x --hub_token abc --seed 1", "x --hub_token [redacted] --seed 1"),
        ("x --hub-token=abc", "x --hub-token=[redacted]"),
        ("x --hub_token 'a b' -y", "x --hub_token [redacted] -y"),
        ("x '--hub_token=a b' -y", "x '--hub_token=[redacted]' -y"),
        ("HF_TOKEN=abc x", "HF_TOKEN=[redacted] x"),
        ("x --wandb_api_key k --password=p", "x --wandb_api_key [redacted] --password=[redacted]"),
        ("git clone https://me:pw@host/x", "git clone https://[redacted]@host/x"),
        (f"x --name a/{TOKEN}.b", "x --name a/[redacted].b"),
        ("WANDB_API_KEY=0123 AWS_SECRET_KEY='a/b+c' x", "WANDB_API_KEY=[redacted] AWS_SECRET_KEY=[redacted] x"),
        ("wandb login 0123456789012345678901234567890123456789", "wandb login [redacted]"),
        ("x AKIAABCDEFGHIJKLMNOP ghp_abcdefghijklmnopqrstuvwx", "x [redacted] [redacted]"),
        ("x sk-proj-abcdefghijklmnopqrstuvwx", "x [redacted]"),
        ("curl -H 'Authorization: Bearer abcdefgh.ijk'", "curl -H 'Authorization: [redacted]'"),
        ("failed with Bearer abcdefgh.ijk", "failed with Bearer [redacted]"),
        ("x https://h/y?token=abc&a=1&sig=d", "x https://h/y?token=[redacted]&a=1&sig=[redacted]"),
        ("git+https://abc@github.com/x", "git+https://[redacted]@github.com/x"),
        ('{"api_key": "a b", "seed": 1}', '{"api_key": [redacted], "seed": 1}'),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- x", "[redacted] x"),
        ("x --revision 0123456789012345678901234567890123456789", "x --revision 0123456789012345678901234567890123456789"),
        ("x --num_key_value_heads 4 --prefix_token '</s>'", "x --num_key_value_heads 4 --prefix_token '</s>'"),
        ("x --token --seed 1", "x --token --seed 1"),
        ("x --mask_tokens 2 --eval_token_share 1 --tokenizer t", "x --mask_tokens 2 --eval_token_share 1 --tokenizer t"),
        ("x --pad_token '<pad>' --model hf_shear/x", "x --pad_token '<pad>' --model hf_shear/x"),
    ],
)  # fmt: skip
def test_secrets_of_a_command_are_redacted(command, shown):
    assert redact_command(command) == shown


def test_a_name_that_only_begins_like_a_token_stays():
    assert redact_tokens("hf_shear hf_12345") == "hf_shear hf_12345"
    assert redact_tokens(f"<{TOKEN}>") == "<[redacted]>"


@pytest.mark.parametrize("part", [*complete(), "nothing"])
def test_each_part_may_be_missing(part):
    results = complete()
    results.pop(part, None)
    page = Page(html_report(results, evaluated()))
    assert all(title in page.text for title in SECTIONS)
    # null is as missing; but a number and a text can not be null
    if part != "nothing" and part not in ("seed", "command"):
        assert html_report(results | {part: None}, evaluated()) == html_report(results, evaluated())


@pytest.mark.parametrize("part", [*evaluated(), "nothing"])
def test_each_part_of_the_evaluation_may_be_missing(part):
    evaluation = evaluated()
    evaluation.pop(part, None)
    Page(html_report(complete(), evaluation))
    for side in ("source", "pruned"):
        evaluation.get(side, {}).pop("perplexity", None)
        evaluation.get(side, {}).pop("tasks", None)
    Page(html_report(complete(), evaluation))


def test_missing_parts_are_said_in_sentences():
    text = Page(html_report({})).text
    for said in (
        "no shapes of both", "which units were kept", "no evaluated model", "no evaluation.json", "speed was not measured",
        "there are no curves", "no record of the learned masks", "did not record its command", "hold no versions",
    ):  # fmt: skip
        assert said in text, said
    only_recovery = {"recovered": complete()["recovered"], "history": complete()["history"][3:]}
    text = Page(html_report(only_recovery)).text
    assert "recovery from" in text and "No baselines were run" in text


def test_a_huge_model_makes_a_page_of_moderate_size():
    domains = [f"domain {index}" for index in range(12)]
    results = complete(domains, layers=80, heads=64, groups=8, hidden=8192, intermediate=28672, rows=2000)
    content = html_report(results, evaluated(domains))
    Page(content)
    assert len(content) < 1_000_000
    assert "14,335 to 14,336 of 28,672 units" in content
    assert f"Lines are drawn through {MAX_POINTS} of up to 1,000 evaluations." in content
    assert "share kept of 64 neighbours" in content


def test_other_stages_get_lines_of_their_own():
    results = complete()
    results["history"] += [row | {"stage": "random"} for row in copy.deepcopy(results["history"][3:])]
    content = html_report(results)
    Page(content)
    assert '<path class="c2" d="M0 6H26"/></svg>random' in content


def test_baselines_have_loss_curves_and_no_place_in_the_charts_of_domains():
    results = complete()
    rows = [row | {"num_tokens": 700, "stage": "taylor"} for row in copy.deepcopy(results["history"][3:])]
    content = html_report(results | {"baseline_history": {"taylor": rows}})
    Page(content)
    assert content.count('<path class="c2" d="M0 6H26"/></svg>taylor') == 1
    first, last = (1.29 + rows[index]["loss"]["code"] - 1.2345 for index in (0, -1))
    assert f"taylor from {first:.3f} to {last:.3f}" in content


def test_sizes_are_drawn_at_every_logged_step():
    results = complete()
    shapes = {name: results["history"][0][name] for name in ("expected_shape", "target_shape")}
    text = Page(html_report(results | {"sizes": [{"num_tokens": 100 * step, **shapes} for step in range(1, 10)]})).text
    assert "(9 logged steps)" in text
    assert "(3 logged steps)" in Page(html_report(results)).text  # of a run that has them at its evaluations only


def test_a_line_chart_draws_what_it_is_given():
    chart = line_chart("c", [Series([(0, 0), (50, 50), (100, 100)], "c0")], description="d", y_limits=(0, 100))
    assert 'd="M0 1000L500 500L1000 0"' in chart
    steps = line_chart("c", [Series([(0, 0), (100, 100)], "c0", True)], description="d", y_limits=(0, 100))
    assert 'd="M0 1000H1000V0"' in steps
    log = line_chart("c", [Series([(0, 1), (1, 10), (2, 100)], "c0")], description="d")
    heights = [float(y) for y in re.findall(r"[ML]\d+ (\d+)", re.findall(r'class="c0" d="([^"]*)"', log)[0])]
    assert heights[1] == pytest.approx(500, abs=1)  # 10 is half-way between 1 and 100 on the logarithmic axis
    one = line_chart("c", [Series([(5, 2.0)], "c0")], description="d")
    assert 'class="dots c0"' in one


def test_round_numbers():
    assert linear_ticks(0, 100, 4) == [0, 25, 50, 75, 100]
    assert linear_ticks(3, 3, 4) == [3]
    assert [short_count(n).replace(NO_BREAK, " ") for n in (7, 999, 999_800, 1_088_896, 6.9e10)] == [
        "7", "999", "1.00 M", "1.09 M", "69.0 B",
    ]  # fmt: skip
    assert [duration(s) for s in (0.05, 4.67, 173.4, 3720, 900_000)] == [
        "0.05 s", "4.7 s", "2 min 53 s", "1 h 02 min", "250 h",
    ]  # fmt: skip


def test_the_verb_writes_the_file_and_refuses_other_folders(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "no run wrote there" in capsys.readouterr().err
    (tmp_path / "stages.json").write_text(json.dumps({"settings": {}, "source": {}, "mask_learning": {}}))
    assert main(["report", str(tmp_path)]) == 2
    assert "has not finished recovery." in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps(complete()))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_report(complete())
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluated()))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == html_report(complete(), evaluated())
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="evaluation.json"):
        write_html_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_report(complete())


def test_an_evaluation_of_single_documents_other_tokens_and_a_task_without_a_value():
    evaluation = evaluated(("code",))
    for side in ("source", "pruned"):
        evaluation[side]["perplexity"]["domains"]["code"] |= {"loss_interval": None, "bits_per_byte_interval": None}
        evaluation[side]["tasks"]["piqa"] |= {"value": None, "standard_error": None}
    evaluation["differences"] = {"code": {"loss": 0.2345, "interval": None}}
    page = html_report({}, evaluation)
    assert "<h3>Loss, pruned minus source</h3>" in page and "+0.23" in page and "+0.234 <small>[" not in page
    evaluation["differences"] = {"code": {"bits_per_byte": -0.0417, "bits_per_byte_interval": [-0.0519, -0.0311]}}
    page = html_report({}, evaluation)
    assert "<h3>Bits per byte, pruned minus source</h3>" in page and "tokenizers differ" in page
    assert "-0.042 <small>[-0.052, -0.031]</small>" in page
