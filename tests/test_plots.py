"""The pictures, through the data of their axes: what is drawn, how it is labelled, and nothing global."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hf_shear.core import SHAPE_NAMES
from hf_shear.report import plot_domains, plot_kept_units, plot_sizes
from hf_shear.report.plots import COLOURS, CUT, GROUP_CUT, KEPT, MARKERS

SHAPE = dict(zip(SHAPE_NAMES, (8, 3, 4, 2, 10), strict=True))


def kept_units():
    """Layers 0 and 2 of three, one KV group of two, one query of the two in it."""
    return {
        "layers": [0, 2],
        "hidden": [0, 1, 5],
        "heads": {"0": [3], "2": [0]},
        "key_value_heads": {"0": [1], "2": [0]},
        "intermediate": {"0": [0, 1, 2, 3], "2": [9]},
    }


def everything(layers, heads, groups, mlp, hidden):
    """All units of a source of this size, as its shape and as `kept`."""
    shape = dict(zip(SHAPE_NAMES, (hidden, layers, heads, groups, mlp), strict=True))
    per_layer = {"heads": range(heads), "key_value_heads": range(groups), "intermediate": range(mlp)}
    kept = {name: {i: list(ids) for i in range(layers)} for name, ids in per_layer.items()}
    return shape, {"layers": list(range(layers)), "hidden": list(range(hidden)), **kept}


def history():
    rows = [
        (0, "mask_learning", 0.5, 2.0),
        (1_000_000, "mask_learning", 0.4, 3.0),
        (1_000_000, "recovery", 0.4, 2.8),
        (3_000_000, "recovery", 0.7, 2.2),
    ]
    return [
        {
            "num_tokens": tokens,
            "stage": stage,
            "mixture_weights": {"code": weight, "docs": 1 - weight},
            "loss": {"code": loss, "docs": loss + 0.5},
            "reference_loss": {"code": 1.9, "docs": 2.4},
        }
        for tokens, stage, weight, loss in rows
    ]


def lines(axes, colour):
    return [line for line in axes.get_lines() if line.get_color() == colour]


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_heads_are_drawn_by_layer_and_group():
    heads = plot_kept_units(kept_units(), SHAPE).axes[0]
    mesh = heads.collections[0]
    states = mesh.get_array()  # [layers, 2 heads, gap, 2 heads]
    assert states.shape == (3, 5)
    assert states.mask[:, 2].all() and not np.delete(states.mask, 2, axis=1).any()
    drawn = np.delete(np.asarray(states.filled(-1)), 2, axis=1)
    assert drawn.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [2, 1, 0, 0]]
    colours = [mesh.cmap(mesh.norm(state)) for state in (0, 1, 2)]
    assert colours == [pytest.approx(_rgba(colour)) for colour in (GROUP_CUT, CUT, KEPT)]
    assert [tick.get_text() for tick in heads.get_xticklabels()] == ["0", "1", "2", "3"]
    assert heads.get_ylim() == (2.5, -0.5), "the first layer is at the top"
    assert heads.get_title(loc="left") == "Heads: 1 of 4 in each layer\nKV groups: 1 of 2"


def _rgba(colour):
    from matplotlib.colors import to_rgba

    return to_rgba(colour)


def test_removed_layers_are_hatched_in_both_panels():
    figure = plot_kept_units(kept_units(), SHAPE)
    for axes in figure.axes[:2]:
        hatched = [patch for patch in axes.patches if patch.get_hatch()]
        assert [(patch.get_y(), patch.get_height()) for patch in hatched] == [(0.5, 1.0)]
    assert "layer removed" in legend_labels(figure)


def test_mlp_bars_hold_shares_and_numbers():
    mlp = plot_kept_units(kept_units(), SHAPE).axes[1]
    bars = [patch for patch in mlp.patches if patch.get_facecolor() == pytest.approx(_rgba(KEPT))]
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in bars] == [
        (pytest.approx(0), 0.4),
        (pytest.approx(2), 0.1),
    ]
    assert [(text.get_position()[1], text.get_text()) for text in mlp.texts] == [(0, "4"), (2, "1")]
    assert mlp.get_title(loc="left").startswith("MLP: 1 to 4 of 10")
    assert mlp.get_xlim() == (0, 1)


def test_hidden_is_a_strip_of_the_kept_indices():
    hidden = plot_kept_units(kept_units(), SHAPE).axes[2]
    values, edges, _ = hidden.patches[0].get_data()
    assert values.tolist() == [1, 1, 0, 0, 0, 1, 0, 0]
    assert edges.tolist() == list(range(9))
    assert hidden.get_title(loc="left") == "Hidden: 3 of 8"


def test_a_wide_hidden_dimension_is_drawn_as_shares_of_neighbours():
    shape, kept = everything(1, 2, 2, 4, 1000)
    kept["hidden"] = list(range(4)) + list(range(8, 1000))
    hidden = plot_kept_units(kept, shape).axes[2]
    values, edges, _ = hidden.patches[0].get_data()
    assert edges[1] == 8 and edges[-1] == 1000 and len(values) == 125
    assert values.tolist() == [0.5] + [1.0] * 124
    assert "stripes of 8" in hidden.get_xlabel() and hidden.get_ylabel() == "share kept"


def test_a_last_stripe_that_is_not_full_is_a_share_of_its_own_size():
    shape, kept = everything(1, 2, 2, 4, 385)  # stripes of 4, the last of 1
    values, edges, _ = plot_kept_units(kept, shape).axes[2].patches[0].get_data()
    assert edges[-2:].tolist() == [384, 385] and values.tolist() == [1.0] * 97


@pytest.mark.parametrize("groups", [32, 8])
def test_a_large_model_keeps_few_ticks_and_all_numbers(groups):
    shape, kept = everything(32, 32, groups, 16, 64)
    figure = plot_kept_units(kept, shape)
    assert len(figure.axes[0].get_xticks()) <= 12 and len(figure.axes[0].get_yticks()) <= 12
    assert figure.axes[0].get_yticks()[:2].tolist() == [0, 5]
    assert len(figure.axes[1].texts) == 32
    assert (figure.axes[0].collections[0].get_array() == 2).sum() == 32 * 32
    assert ("head cut, its KV group kept" in legend_labels(figure)) == (groups == 8)
    assert "layer removed" not in legend_labels(figure)


def test_very_many_layers_leave_out_the_numbers():
    shape, kept = everything(80, 2, 2, 4, 8)
    assert len(plot_kept_units(kept, shape).axes[1].texts) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden": [0, 8]}, "between 0 and 7 for `hidden`"),
        ({"hidden": [0, 0]}, "each index of the source once"),
        (
            {"layers": [0, 1]},
            r"`kept\['heads'\]` must have one entry per kept layer \[0, 1\], but it has \[0, 2\]",
        ),
        ({"heads": {"0": [3], "2": [4]}}, "between 0 and 3 for `heads.2`"),
        ({"heads": {"0": [0], "2": [0]}}, r"in layer 0 it does not for heads \[0\]"),
    ],
)
def test_kept_units_that_contradict_the_source(change, text):
    with pytest.raises(ValueError, match=text):
        plot_kept_units({**kept_units(), **change}, SHAPE)


def test_domains_are_one_colour_each_and_one_line_per_stage():
    weights, losses = plot_domains(history()).axes
    first, second = lines(weights, COLOURS[1])
    assert points(first) == [(0.0, 0.5), (1.0, 0.6)]
    assert points(second) == [(1.0, 0.6), (3.0, pytest.approx(0.3))]
    assert first.get_drawstyle() == "steps-post", "a weight holds until the next"
    solid = [line for line in lines(losses, COLOURS[0]) if line.get_linestyle() == "-"]
    assert [points(line) for line in solid] == [[(0.0, 2.0), (1.0, 3.0)], [(1.0, 2.8), (3.0, 2.2)]]
    dashed = [line for line in lines(losses, COLOURS[0]) if line.get_linestyle() != "-"]
    assert [points(line) for line in dashed] == [[(0.0, 1.9), (1.0, 1.9)], [(1.0, 1.9), (3.0, 1.9)]]


def test_domain_axes_have_units_a_legend_outside_and_the_cut():
    figure = plot_domains(history())
    weights, losses = figure.axes
    assert losses.get_xlabel() == "training tokens (million)"
    assert "nats per token" in losses.get_ylabel() and "share of the batch" in weights.get_ylabel()
    assert legend_labels(figure) == ["code", "docs", "reference loss"]
    for axes in figure.axes:
        assert axes.get_legend() is None
        cut = [line for line in axes.get_lines() if line.get_label() == "_cut"]
        assert [list(line.get_xdata()) for line in cut] == [[1.0, 1.0]]
    assert [text.get_text().strip() for text in weights.texts] == ["mask learning", "recovery"]


def test_one_stage_has_no_cut():
    figure = plot_domains([row for row in history() if row["stage"] == "recovery"])
    assert not [line for axes in figure.axes for line in axes.get_lines() if line.get_label() == "_cut"]
    assert figure.axes[0].get_title(loc="left") == "Recovery"


def test_rows_may_lack_values():
    rows = history()
    del rows[1]["mixture_weights"], rows[2]["loss"]
    rows[3]["reference_loss"] = None
    weights, losses = plot_domains(rows).axes
    assert [list(line.get_xdata()) for line in lines(weights, COLOURS[0])] == [[0.0], [1.0, 3.0]]
    assert [list(line.get_xdata()) for line in lines(losses, COLOURS[0]) if line.get_linestyle() == "-"] == [
        [0.0, 1.0],
        [3.0],
    ]


def test_a_wide_range_of_losses_gets_a_log_axis():
    rows = history()
    assert plot_domains(rows).axes[1].get_yscale() == "linear"
    rows[2]["loss"] = {"code": 9.0, "docs": 9.5}
    losses = plot_domains(rows).axes[1]
    assert losses.get_yscale() == "log" and "log" in losses.get_ylabel()


def test_domains_differ_though_there_are_more_than_colours():
    names = [f"domain_{i}" for i in range(30)]
    row = {"num_tokens": 5, "stage": "recovery", "loss": dict.fromkeys(names, 2.0)}
    (losses,) = plot_domains([row]).axes  # no panel of weights, of which there are none
    styles = {(line.get_color(), line.get_marker()) for line in losses.get_lines()}
    assert len(styles) == 30 and len(set(COLOURS)) == 12 == len(set(MARKERS))


def test_names_that_matplotlib_would_hide_or_typeset_are_shown(tmp_path):
    row = {"num_tokens": 5, "stage": "recovery", "loss": {"_text": 2.0, "a$b$": 2.1, "n" * 60: 1.0}}
    figure = plot_domains([row], tmp_path / "domains.svg")
    labels = legend_labels(figure)
    assert labels[0].strip() == "_text" and labels[1] == r"a\$b\$" and len(labels[2]) <= 24


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "at least one row"),
        ([{"num_tokens": 1, "stage": "export"}], r"`history\[0\]\['stage'\]` must be .*but it is 'export'"),
        (history()[::-1], "in the order of `num_tokens`, but row 1 has 1000000 after 3000000"),
    ],
)
def test_histories_that_make_no_sense(rows, text):
    with pytest.raises(ValueError, match=text):
        plot_domains(rows)


def size_history():
    source = dict(zip(SHAPE_NAMES, (64, 5, 8, 4, 172), strict=True))
    target = dict(zip(SHAPE_NAMES, (48, 4, 4, 2, 86), strict=True))
    rows = [
        {"num_tokens": tokens, "expected_shape": expected, "target_shape": aim}
        for tokens, expected, aim in ((0, source, source), (2000, {**source, "hidden_size": 56}, target))
    ]
    return source, target, rows


def test_sizes_are_fractions_of_the_source():
    source, target, rows = size_history()
    figure = plot_sizes(rows, target, source_shape=source)
    panels = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title(loc="left").split(":")[0] for axes in panels]
    assert titles == ["hidden size", "layers", "attention heads", "key-value heads", "MLP size"]
    hidden = {line.get_label(): line for line in panels[0].get_lines()}
    assert points(hidden["expected size"]) == [(0.0, 1.0), (2.0, 56 / 64)]
    assert points(hidden["target of the step"]) == [(0.0, 1.0), (2.0, 0.75)]
    assert list(hidden["final target"].get_ydata()) == [0.75, 0.75]
    assert panels[0].get_title(loc="left") == "hidden size: 48 of 64"
    assert panels[-1].get_xlabel() == "training tokens (thousand)"
    assert legend_labels(figure) == ["target of the step", "expected size", "final target"]


def test_sizes_given_as_fractions_are_drawn_as_they_are():
    rows = [{"num_tokens": 7, "expected_shape": {"intermediate_size": 0.5}}]
    (axes,) = plot_sizes(rows, {"intermediate_size": 0.25}).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn == {"expected size": [0.5], "final target": [0.25, 0.25]}
    assert axes.get_xlabel() == "training tokens"


def test_sizes_that_nobody_reduces_get_no_panel():
    source, target, rows = size_history()
    kept = {name: source[name] for name in ("num_hidden_layers", "intermediate_size")}
    rows = [{kind: {**row[kind], **kept} if isinstance(row[kind], dict) else row[kind] for kind in row} for row in rows]
    panels = plot_sizes(rows, target | kept, source_shape=source).axes
    titles = [axes.get_title(loc="left").split(":")[0] for axes in panels]
    assert titles == ["hidden size", "attention heads", "key-value heads"]


def test_no_line_hides_another():
    """Weights that stay equal lie on one another: each is wider than the one that is drawn over it."""
    names = [f"domain_{i}" for i in range(4)]
    rows = [{"num_tokens": n, "stage": "recovery", "mixture_weights": dict.fromkeys(names, 0.25)} for n in (1, 2)]
    (weights,) = plot_domains(rows).axes
    widths = [line.get_linewidth() for line in weights.get_lines()]
    assert widths == sorted(set(widths), reverse=True) and weights.get_ylim()[1] > 0.26


def test_units_taken_for_fractions_are_refused():
    _, target, rows = size_history()
    with pytest.raises(ValueError, match="fractions of the source for `hidden_size`.*largest is 64"):
        plot_sizes(rows, target)
    with pytest.raises(ValueError, match="rows with `expected_shape`, but none has it"):
        plot_sizes([{"num_tokens": 1}], target)


def test_pictures_are_saved_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    figure = plot_kept_units(kept_units(), SHAPE, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert (figure.get_size_inches() * figure.dpi)[0] >= 800
    plot_domains(history(), tmp_path / "domains.pdf")
    assert (tmp_path / "domains.pdf").read_bytes().startswith(b"%PDF")


def test_legends_and_panels_do_not_overlap():
    """What the layout is for: measured on the drawn figure, as a reader would see it."""
    source, target, rows = size_history()
    figures = [
        plot_kept_units(kept_units(), SHAPE),
        plot_domains(history()),
        plot_sizes(rows, target, source_shape=source),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        boxes.append(figure.legends[0].get_window_extent())
        width, height = figure.get_size_inches() * figure.dpi
        for index, box in enumerate(boxes):
            assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1
            for other in boxes[index + 1 :]:
                horizontal = min(box.x1, other.x1) - max(box.x0, other.x0)
                vertical = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert min(horizontal, vertical) <= 1, "in pixels"


def test_the_error_without_matplotlib_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    source, target, rows = size_history()
    for plot in (
        lambda: plot_kept_units(kept_units(), SHAPE),
        lambda: plot_domains(history()),
        lambda: plot_sizes(rows, target, source_shape=source),
    ):
        with pytest.raises(ImportError, match=r"hf-shear\[plots\]"):
            plot()
