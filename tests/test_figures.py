"""The figures: the numbers that are drawn and that findings name, not the pixels; words, colours and files."""

import html
import io
import re
from itertools import combinations, pairwise

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.text import Text
from PIL import Image

from datadream_utils.analysis import ablations, compare, copies, results
from datadream_utils.analysis.alignment import MEASURES, REAL
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.published import published_order
from datadream_utils.catalogue import FIGURES
from datadream_utils.methods import METHODS
from datadream_utils.plots import copies as copy_plots
from datadream_utils.plots import diagram, gallery, pictures, style, training
from datadream_utils.plots.ablations import ablation_lines, compute_lines
from datadream_utils.plots.alignment import alignment_scatter, fidelity_diversity
from datadream_utils.plots.per_class import confusion_change_heatmap, gain_heatmap, reliability_curves
from datadream_utils.plots.results import accuracy_bars, forest, gain_by_shots, pareto, teaser

# One of each catalogue name. ----------------------------------------------------------------------------------------


def _costs():
    rows = [("real", "R", 10.0, 70.0), ("fakeit", "S", 20.0, 40.0), ("fakeit", "R+S", 30.0, 72.0),
            ("loft", "S", 30.0, 71.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "setting", "seconds", "accuracy_mean"])
    return table.assign(accuracy_std=1.0, flops=np.nan)


def _summary(rows):
    """``summarise_ablation`` of (setting, method, value, accuracies of seeds 0, 1, ...; default, reference)."""
    names = ("setting", "method", "value", "default", "reference", "seed", "accuracy")
    named = [(*row[:3], *row[4:], seed, accuracy) for row in rows for seed, accuracy in enumerate(row[3])]
    return ablations.summarise_ablation(pd.DataFrame(named, columns=names).assign(adapted=0.0))


def _ablation():
    rows = [("S", "fakeit", 1, [37.5, 40, 42.5]), ("S", "fakeit", 16, [46.5, 44, 41.5]),
            ("R+S", "loft", 1, [62.5, 60, 57.5]), ("R+S", "loft", 16, [72.5, 75, 77.5])]  # fmt: skip
    return _summary([(*row, row[2] == 16, row[2] == 16) for row in rows])


def _compute():
    shots = _summary([("S", "loft", 4, [60, 61, 62], False, False), ("S", "loft", 16, [70, 70, 70], True, True)])
    epochs = _summary([("S", "loft", 15, [65, 66, 64], False, False), ("S", "loft", 60, [70, 70, 70], True, True)])
    shots, epochs = (table.assign(adapted=[2400.0, 9600.0]) for table in (shots, epochs))
    return ablations.join_compute({"n_shot": shots, "adapt_epochs": epochs})


def _gains():
    seeds = {("fakeit", 0): [-8.0, -9, -10], ("fakeit", 1): [7.1, -4.9, -28.9], ("loft", 0): [3.0, 3, 3],
             ("loft", 1): [1e-14, 0, 0]}  # fmt: skip
    rows = [(m, i, "ab"[i], s, gain) for (m, i), gains in seeds.items() for s, gain in enumerate(gains)]
    gains = pd.DataFrame(rows, columns=["method", "label", "class_name", "seed", "gain"])
    return gains.assign(setting="R+S", accuracy=50.0)


def _measures(values):
    """``compute_alignment`` with one class: ``{method: values of the seeds}``, equal for every measure."""
    return pd.DataFrame([
        {"method": m, "seed": seed, "label": 0} | dict.fromkeys(MEASURES, x)
        for m, seeds in values.items() for seed, x in enumerate(seeds)
    ])  # fmt: skip


def _correlations(**changes):
    numbers = {"setting": "R+S", "rho": 0.5, "low": -0.1, "high": 0.9, "p_holm": np.nan, "verdict": "within noise"}
    between = {"kind": "between", "rho": -0.8, "low": np.nan, "high": np.nan, "p_holm": 0.1}
    return pd.DataFrame([numbers | {"kind": "within"} | changes, numbers | between])


def _bins():
    bins = {"method": "real", "setting": "R", "certainty": [50.0, 90.0], "accuracy": [60.0, 80.0], "n": 20}
    return pd.DataFrame(bins)


def _copies():
    table = pd.DataFrame({"method": ["datadream_cls"] * 6 + ["fakeit"] * 6, "n_shot": ([1] * 3 + [16] * 3) * 2})
    table = table.assign(
        seed=[0, 1, 2] * 4, feature_nearer=[99, 98, 97] + [50] * 9, pixel_nearer=[80, 75, 79] + [40] * 9
    )
    table = table.assign(feature_copies=[92, 95, 90] + [1] * 9, pixel_copies=[1, 2, 1] + [0] * 9)
    return copies.above_baseline(table)


def _results():
    """``(add_verdicts, compare_pairs)`` of three classifiers with three seeds."""
    keys = [("disef", "S", 40.0), ("real", "R", 78.0), ("issynth", "R+S", 80.0)]
    table = pd.DataFrame(keys, columns=["method", "setting", "accuracy_mean"]).assign(dataset="d", accuracy_std=1.0)
    rng, images = np.random.default_rng(0), np.arange(400)
    right = {"disef": 160, "real": 312, "issynth": 320}
    correct = {
        (m, s): pd.DataFrame({seed: rng.permutation(images < right[m]) for seed in range(3)}) for m, s, _ in keys
    }
    pairs = compare.compare_pairs(correct)
    return compare.add_verdicts(table, {"d": pairs}), pairs


def _gains_by_shots():
    """``questions.gains_by_shots`` of two classifiers."""
    rows = [
        {"classifier": classifier, "method": method, "n_shot": n_shot, "difference": 3.0 - n_shot / 8, "low": 1.0,
         "high": 5.0, "p": 0.01, "per_dataset": {"a": 4.0, "b": 2.0}, "n_seeds": 5}
        for classifier in ("clip", "resnet") for method in ("datadream_cls", "datadream_dset") for n_shot in (1, 16)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _near(paths):
    return pd.DataFrame({"path": paths[:4], "feature": [0.1, 0.2, 0.3, 0.4], "feature_shot": paths[4:8]})


def _draw_all(folder):
    """``{name: function that draws it}``."""
    paths = [folder / f"{i}.png" for i in range(16)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20, 20), (i * 15, 0, 0)).save(path)
    near, (table, pairs) = _near(paths), _results()
    points = _gains().query("seed == 0").assign(distance=[1.0, 2.0, 3.0, 4.0])
    drawn = {("issynth", 16): paths[:4], ("datadream_cls", 1): paths[:4]}
    labels = [method.label for method in METHODS.values() if method.generates]
    rows = {name: [np.zeros((4, 4, 3))] * 8 for name in ("Real images", *labels)}
    return {
        "teaser": lambda: teaser(rows, "seven", "mnist5k"),
        "accuracy_bars": lambda: accuracy_bars(table, "d"),
        "order": lambda: forest(compare.compare_order(pairs, "d"), "d"),
        "gain_by_shots": lambda: gain_by_shots(_gains_by_shots()),
        "qualitative": lambda: pictures.qualitative(paths, drawn, "cost $5 or $6", "mine"),
        "diagram": lambda: diagram.method_diagram(["zero", "one $2$"], [paths[:3], paths[3:6]]),
        "ablation_n_shot": lambda: ablation_lines(_ablation(), "n_shot", 77.0),
        "ablation_compute": lambda: compute_lines(_compute()),
        "alignment_RS": lambda: alignment_scatter(points, _correlations(), "R+S"),
        "fidelity": lambda: fidelity_diversity(_measures({"loft": [0.5], "fakeit": [0.4], REAL: [0.5]})),
        "copies": lambda: copy_plots.copies_by_shots(_copies()),
        "nearest_shots": lambda: copy_plots.nearest_shots({"loft": near}, near.assign(feature=near["feature"] + 0.15)),
        "worst_copies": lambda: copy_plots.worst_copies({("loft", 16, 2): copies.find_worst(near, 3)}),
        "class_gains_RS": lambda: gain_heatmap(_gains(), "R+S"),
        "confusion_change": lambda: confusion_change_heatmap(np.array([[2.0, -2], [-5, 5]]), ["a", "b"], "loft", "S"),
        "reliability_RS": lambda: reliability_curves(_bins(), _bins().assign(error=[7.0, 9.0])),
        "pareto": lambda: pareto(_costs()),
    }


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    return _draw_all(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def figures(makers):
    """``{name: figure}``, drawn once for all tests, which only read them."""
    return {name: make() for name, make in makers.items()}


# Words ---------------------------------------------------------------------------------------------------------------


def test_every_kind_of_figure_has_its_entry_alt_text_and_at_most_one_short_finding(figures):
    kinds = {re.sub("_(S|RS|flops)$", "", name) for name in FIGURES if not name.startswith("ablation_")}
    assert kinds | {"ablation_n_shot", "ablation_compute"} == {name.removesuffix("_RS") for name in figures}
    for name, figure in figures.items():
        assert figure.name == name and len(figure.alt) > 20 and not figure.reason, name
        assert len(figure.finding.split()) <= 25 and figure.finding.count(". ") <= 1, name
        words = gallery.caption(figure).data
        assert gallery.escape_markdown(FIGURES[name].caption) in words, name
        assert ("**" in words) == bool(figure.finding), name
    assert {name for name, figure in figures.items() if not figure.finding} == {"teaser", "qualitative", "diagram"}


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("accuracy_bars", ["IsSynth (R+S), 80.0 %", "1 of 1 others"]),
        ("ablation_n_shot", ["0 of 2", "1 below"]),  # 4.303 * 5 / 3**0.5 = 12.4 around -4 and -15
        ("ablation_compute", ["0 of 1"]),
        ("alignment_RS", ["no relation", "+0.50 [-0.10, +0.90]"]),
        ("fidelity", ["density: LoFT (0.50; 1 of 1", "coverage: LoFT (0.50; 1 of 1"]),
        ("copies", ["DataDream_cls, 1 shot", "98 % by features", "78 % by pixels"]),
        ("nearest_shots", ["50.0 % (LoFT)"]),  # 0.1 and 0.2 are below 0.253
        ("worst_copies", ["0.100"]),
        ("class_gains_RS", ["1 of 4 gains", "1 below"]),
        ("confusion_change", ["'b' is taken for 'a' less often (-5.0 points)"]),
        ("reliability_RS", ["Real-finetune (R): 8.0 points"]),
        ("pareto", ["2 of 4", "from Real-finetune (R) to FakeIt (R+S)"]),
    ],
)
def test_a_finding_has_the_numbers_of_the_data(figures, name, numbers):
    for number in numbers:
        assert number in figures[name].finding


def test_the_finding_of_the_order_counts_outcomes(figures):
    order = compare.compare_order(_results()[1], "d")
    counts = [int((order["outcome"] == outcome).sum()) for outcome in compare.OUTCOMES]
    assert [int(n) for n in re.findall(r"\d+", figures["order"].finding)] == [len(order), *counts]
    assert 0 < len(order) < len(published_order("d")) and not figures["order"].complete


@pytest.mark.parametrize(
    "figure, words",
    [
        (lambda: ablation_lines(_ablation().iloc[:0], "lora_rank"), "No runs differ in lora_rank alone: snakemake"),
        (lambda: compute_lines(_compute()[:0]), "snakemake"),
        (lambda: forest(compare.compare_order(_results()[1], "d")[:0], "d"), "published orders"),
        (lambda: pareto(_costs(), "flops"), "No run has"),
        (lambda: pictures.qualitative([], {}, "a", "b"), "no few shots"),
        (lambda: copy_plots.copies_by_shots(_copies()[:0]), "no generated images"),
        (lambda: copy_plots.nearest_shots({}, None), "no generated images"),
        (lambda: copy_plots.worst_copies({("loft", 4, 0): pd.DataFrame()}), "no generated images"),
        (lambda: gain_heatmap(_gains(), "S"), "No S classifier"),
        (lambda: confusion_change_heatmap(None, ["a"], "loft", "S"), "LoFT (S) has no reference"),
        (lambda: reliability_curves(_bins(), _bins().assign(error=1.0), ("S",)), "No classifier"),
        (lambda: fidelity_diversity(_measures({REAL: [0.5]})), "as many images"),
    ],
)
def test_an_empty_figure_names_what_to_run(figure, words):
    made = figure()
    assert words in made.reason and made.name in FIGURES and not made.complete and not made.finding
    assert gallery.caption(made).data == gallery.escape_markdown(made.reason)


def test_alt_text_falls_back_on_titles_and_joins_the_finding(figures):
    black = np.zeros((4, 4, 3))
    grid = pictures.show_grid([[black] * 2] * 2, ["one", "two"], ["before", "after"], title="Drawn")
    _, metadata = DisplayFormatter().format(grid)
    assert metadata == {"image/png": {"alt": "Drawn; rows: one, two; columns: before, after"}}
    assert figures["pareto"].alt_text() == f"{figures['pareto'].alt} {figures['pareto'].finding}"


def test_the_gallery_shows_every_figure_with_its_words(figures):
    page = gallery.gallery(list(figures.values()), "All")
    shown = re.findall(r'## (.+)\n\n<img src="(.+?)\.png" alt="(.+?)">\n\n(.+)', page)
    assert [name for _, name, *_ in shown] == list(figures)
    for title, name, alt, words in shown:
        assert html.unescape(alt) == figures[name].alt_text() and words == gallery.caption(figures[name]).data
        assert title == gallery.escape_markdown(FIGURES[name].title)


# Looks ---------------------------------------------------------------------------------------------------------------


def test_figures_are_read_in_print_and_in_the_dark(figures):
    for name, figure in figures.items():
        assert figure.get_figwidth() <= style.BOTH + 0.01, name
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= style.SMALL, name
        assert figure.get_facecolor() == (1, 1, 1, 1), name


def test_words_of_figures_lie_within_them(figures):
    for name in set(figures) - {"teaser", "qualitative", "diagram", "worst_copies", "accuracy_bars"}:
        figure = figures[name]
        figure.draw_without_rendering()
        words = [text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label, ax.title)]
        for text in (*words, *figure.legends):
            box, empty = text.get_window_extent(), getattr(text, "get_text", lambda: "legend")() == ""
            inside = box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
            assert inside or empty, (name, text)


@pytest.mark.parametrize("name", ["order", "copies", "class_gains_RS", "qualitative", "diagram"])
def test_the_same_figure_has_the_same_bytes_and_carries_its_alt_text(figures, makers, tmp_path, name):
    paths = [gallery.save_figure(makers[name](), tmp_path / str(i), name) for i in range(2)]
    for first, second in (paths, [path.with_suffix(".pdf") for path in paths]):
        assert first.read_bytes() == second.read_bytes()
    picture = Image.open(paths[0])
    assert picture.info["Description"] == figures[name].alt_text()
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_figures_are_written_with_their_page(figures, tmp_path):
    empty = [style.empty_figure(name, "Nothing was run.") for name in ("order", "ablation_lora_rank")]
    paths = gallery.write_figures([figures["worst_copies"], *empty], tmp_path, "gallery")
    assert [path.name for path in paths] == ["worst_copies.png", "order.png"]  # every study has an order
    assert {path.name for path in tmp_path.iterdir()} == {"gallery.md", *(
        f"{name}.{suffix}" for name in ("worst_copies", "order") for suffix in ("png", "pdf"))}  # fmt: skip
    assert (tmp_path / "gallery.md").read_text(encoding="utf-8").count("<img") == 2
    written = gallery.write_tables({"conclusion": "A and B.", "pairs": _results()[1]}, tmp_path)
    assert [path.name for path in written] == ["conclusion.md", "pairs.csv", "pairs.md"]


def test_methods_are_told_apart_without_colour():
    looks = [style.marker_style(name) for name in (*METHODS, REAL)]
    assert len({look["marker"] for look in looks}) == len(METHODS) + 1
    assert style.in_table_order(["loft", REAL, "real", "datadream_cls"]) == ["real", "datadream_cls", "loft", REAL]


# How red, green and blue of linear light look to who has no green cones (Machado et al. 2009).
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]


def _linear(colour):
    values = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x, y, z = np.cbrt(np.array(xyz) @ linear.clip(0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_stand_out_from_white_and_from_each_other():
    lights = [_linear(style.COLOURS[name]) for name in METHODS]
    for name, light in zip(METHODS, lights, strict=True):
        assert 1.05 / (light @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3, name
    for view in (np.eye(3), np.array(DEUTERANOPIA)):
        seen = [_lab(view @ light) for light in lights]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 10  # 2.3: just to be told apart


# Data ----------------------------------------------------------------------------------------------------------------


def test_grid_has_a_place_for_every_picture():
    red = np.full((4, 4, 3), [1.0, 0, 0])
    figure = pictures.show_grid([[red, red], [red, None]], ["a", "b"], title="t")
    assert sum(len(ax.images) for ax in figure.axes) == 3 and list(figure._repr_mimebundle_()[0]) == ["image/png"]
    assert len(pictures.show_grid([]).axes) == 1


def test_bars_have_whiskers_that_show_on_black(figures):
    (ax,) = figures["accuracy_bars"].axes
    assert [bar.get_width() for bar in ax.patches] == [40, 78, 80]
    (bars,) = (part for part in ax.containers if hasattr(part, "errorbar"))
    assert all(line.get_path_effects() for line in [*bars.errorbar.lines[1], *bars.errorbar.lines[2]])
    one = accuracy_bars(_results()[0][1:2], "d").finding
    assert one == "Highest mean: Real-finetune (R), 78.0 %."


def test_seeds_show_below_a_wide_interval_over_images(figures):
    order = compare.compare_order(_results()[1], "d")
    (ax,) = figures["order"].axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == order["pair"].tolist()
    dots, broad, thin = ax.lines[1:4]
    assert set(dots.get_ydata()) == {0.3} and sorted(dots.get_xdata()) == sorted(order["per_seed"][0].values())
    assert broad.get_alpha() < 0.5 and thin.get_zorder() > broad.get_zorder() and thin.get_marker() == "|"
    assert list(thin.get_xdata()) == [order["seeds_low"][0], order["seeds_high"][0]]


def test_frames_of_the_shots_are_nested_and_mark_their_rows(figures):
    (ax,) = figures["qualitative"].axes
    boxes = [patch.get_window_extent() for patch in ax.patches]
    assert len(boxes) == 4
    for inner, outer in pairwise(boxes):
        assert outer.x0 < inner.x0 and outer.y1 > inner.y1 and outer.x1 > inner.x1 and outer.y0 < inner.y0
    edges = {text.get_text(): text.get_bbox_patch().get_edgecolor() for text in ax.texts if text.get_bbox_patch()}
    assert set(edges) == {"1-shot", "16-shot"}  # rows of which something was drawn
    for n in (1, 16):
        assert edges[f"{n}-shot"] == matplotlib.colors.to_rgba(pictures.FRAMES[n][0])
    assert len(ax.images) == 16 + 4 + 4 and sum(text.get_text() == "not run" for text in ax.texts) == 4 + 4
    assert not figures["qualitative"].complete and "1, 16 of them" not in figures["qualitative"].alt


def test_a_part_of_the_diagram_is_frozen_or_trained(figures):
    (ax,) = figures["diagram"].axes
    trained = [patch for patch in ax.patches if patch.get_hatch()]
    words = [text.get_text() for text in ax.texts]
    assert sum("loss $L_D$" in text for text in words) == 1 and sum("shots $x$" in text for text in words) == 1
    assert words.count("LoRA") == 4 and words.count("adapter\nall classes") == 1
    assert len(trained) == 4 + 1 + 3  # LoRA, the key, one adapter for all and one for each of two
    assert {matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in trained} == {diagram.TRAINED}


def test_ablation_draws_the_table(figures):
    left, right = figures["ablation_n_shot"].axes
    assert list(left.lines[0].get_ydata()) == [40, 44] and list(right.lines[0].get_ydata()) == [60, 75]
    assert right.collections[0].get_segments()[0][:, 1].tolist() == [57.5, 62.5]
    assert any(list(line.get_ydata()) == [77, 77] for line in right.lines)


def test_one_seed_or_no_reference_decides_nothing():
    rows = [("S", "loft", v, [50 + v, 52 + v], v == 16, v == 16) for v in (1, 16)]
    one = _summary([(*row[:3], row[3][:1], *row[4:]) for row in rows])
    assert "With one seed" in ablation_lines(one, "n_shot").finding
    none = _summary([(*row[:4], False, False) for row in rows])
    assert "reference has not been run" in ablation_lines(none, "n_shot").finding
    assert "With one seed" in gain_heatmap(_gains().query("seed == 0"), "R+S").finding


def test_yes_and_no_are_words():
    rows = [("S", "loft", False, [60, 61, 62], False, False), ("S", "loft", True, [63, 64, 68], True, True)]
    (ax,) = ablation_lines(_summary(rows), "train_text_encoder").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["not adapted", "adapted\n(default)"]


def test_images_added_are_drawn_against_real_finetune_of_the_same_seed():
    rows = [("R+S", "issynth", 0, [70, 80, 75], False, True), ("R+S", "issynth", 12, [71, 82, 78], False, False),
            ("R+S", "issynth", 50, [72, 82, 74], True, False), ("S", "issynth", 12, [60, 60, 60], False, False),
            ("S", "issynth", 50, [64, 64, 64.3], True, True)]  # fmt: skip
    figure = ablation_lines(_summary(rows), "synthetic_per_class", 75.0)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["24", "100\n(default)"]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0", "24", "100\n(default)"]
    assert [list(line.get_ydata()) for line in right.lines] == [[1, 2, 3], [2, 2, -1], [0, 2, 1], [0, 0]]
    assert right.lines[2].get_xdata()[0] == 0 and not right.collections  # no whiskers
    assert "0 of 3 differences" in figure.finding and "1 below" in figure.finding  # S: -4.1 in every seed


def test_more_shots_are_better_at_equal_cost_only_beyond_noise():
    assert "0 of 1" in compute_lines(_compute()).finding  # 65 against 61 %: +4.0, -0.3 to +8.3
    table = _compute()
    table["per_seed"] = [{s: a + (9 if row.value == 15 else 0) for s, a in row.per_seed.items()}
                         for row in table.itertuples()]  # fmt: skip
    assert "1 of 1" in compute_lines(table).finding
    assert compute_lines(table[table["moved"] == "n_shot"]).finding == ""


@pytest.mark.parametrize(
    "verdict, words", [("below", "bring more"), ("above", "bring less"), ("within noise", "no rel")]
)
def test_the_scatter_finds_what_holds_within_classes(verdict, words):
    points = _gains().query("seed == 0").assign(distance=[1.0, 2.0, 3.0, 4.0])
    figure = alignment_scatter(points, _correlations(verdict=verdict), "R+S")
    assert words in figure.finding and figure.axes[0].get_xscale() == "log"
    title = figure.axes[0].get_title()
    assert "within classes +0.50 [-0.10, +0.90]\n" in title and "-0.80 (p = 0.100)" in title
    none = alignment_scatter(points, _correlations(rho=np.nan).iloc[:1], "R+S")
    assert none.finding == "" and none.axes[0].get_title() == ""


def test_who_is_most_diverse_is_found_with_the_seeds_noise():
    values = {"loft": [0.5, 0.6, 0.7], "datadream_cls": [0.55, 0.6, 0.62], "datadream_dset": [0.1, 0.2, 0.3]}
    table = _measures(values | {REAL: [0.9] * 3})
    table.loc[table["method"] == "loft", "coverage"] = 0.0
    finding = fidelity_diversity(table).finding
    assert "density: LoFT (0.60; 1 of 2 others" in finding and "coverage: DataDream_cls (0.59; 0 of 2" in finding
    assert "FakeIt (0.60; 1 of 1 others" in fidelity_diversity(_measures({"loft": [0.5], "fakeit": [0.6]})).finding


def test_shares_of_copies_stay_within_their_limits_and_panels_share_their_axis():
    table = pd.DataFrame({"method": ["datadream_cls", "loft", "fakeit"] * 2, "n_shot": 1, "seed": [0, 0, 0, 1, 1, 1]})
    table = table.assign(feature_nearer=[98.0, 60, 40, 100, 60, 60], pixel_nearer=75.0, pixel_copies=0.2)
    figure = copy_plots.copies_by_shots(table.assign(feature_copies=[0.0, 1, 0, 8, 7, 0]))
    assert [ax.get_xlabel() for ax in figure.axes] == [""] * 2 + ["real images per class"] * 2
    for ax in figure.axes:
        ends = np.concatenate([segment for bars in ax.collections for segment in bars.get_segments()])[:, 1]
        assert ends.min() >= 0 and ends.max() <= 100
    few = table.assign(feature_nearer=np.nan, feature_copies=0.2)  # fewer held-out images than shots
    assert copy_plots.copies_by_shots(few).finding == ""


def test_copies_are_judged_in_each_space():
    judged = copies.judge_copies(_copies()).set_index(["method", "n_shot", "space"])
    one = judged.loc[("datadream_cls", 1)]
    assert one["difference"].tolist() == [48, 38] and one["verdict"].tolist() == [Verdict.ABOVE.label] * 2
    assert one["low"]["feature"] == pytest.approx(48 - 4.302653 / 3**0.5)
    assert one["outcome"].tolist() == ["recreated", "drawn towards its shots"]
    assert judged.loc[("datadream_cls", 16)]["outcome"].tolist() == ["not decided"] * 2
    alone = copies.judge_copies(copies.above_baseline(_copies().query("method == 'datadream_cls'")))
    assert alone["difference"].tolist()[:2] == [48, 28]  # to the 50 % without copying
    assert copies.judge_copies(_copies()[:0]).empty


def test_the_run_with_most_copies_is_chosen():
    table = _copies()
    assert copy_plots.most_copies(table) == copy_plots.most_copies(table, "datadream_cls") == ("datadream_cls", 1, 1)
    assert copy_plots.most_copies(table, "loft") is None and copy_plots.most_copies(table[:0]) is None


def test_the_worst_copies_of_several_runs_stand_below_each_other(tmp_path):
    for i in range(2):
        Image.new("RGB", (20, 20), (i * 15, 0, 0)).save(tmp_path / f"{i}.png")
    pairs = pd.DataFrame({"path": [tmp_path / "0.png"], "shot": [tmp_path / "1.png"], "distance": [0.5]})
    blocks = {("issynth", 16, 0): pairs, ("loft", 4, 0): pairs[:0], ("datadream_cls", 1, 0): pairs}
    figure = copy_plots.worst_copies(blocks)
    assert [part.get_suptitle().split(",")[0] for part in figure.subfigs] == ["IsSynth", "DataDream_cls"]


def test_curves_of_nearest_shots_are_named_in_the_tables_order():
    rng = np.random.default_rng(0)
    near = {name: pd.DataFrame({"feature": rng.random(50) + 0.1}) for name in ("loft", "datadream_cls", "fakeit")}
    figure = copy_plots.nearest_shots(near, pd.DataFrame({"feature": rng.random(50) + 0.1}))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["FakeIt", "DataDream_cls", "LoFT", REAL, "1 % of real images"]
    widths = [line.get_linewidth() for line in figure.axes[0].lines[:3]]
    assert widths == sorted(widths, reverse=True) and min(widths) > 0.5  # a curve under another shows beside it


def test_gains_are_starred_where_they_are_more_than_noise(figures):
    (ax,) = figures["class_gains_RS"].axes
    assert [text.get_text() for text in ax.texts] == [
        "-9*",
        "+3*",
        "-9",
        "0",
    ] and "*: more than noise" in ax.get_title()
    (one,) = gain_heatmap(_gains().query("seed == 0"), "R+S").axes
    assert not any("*" in text.get_text() for text in one.texts) and "*" not in one.get_title()


def test_a_heat_map_of_many_classes_names_how_many_it_shows():
    rows = [("loft", i, f"class {i}", float(i)) for i in range(30)]
    gains = pd.DataFrame(rows, columns=["method", "label", "class_name", "gain"]).assign(setting="S")
    change = np.diag(np.arange(30.0)) - np.diag(np.arange(29.0), 1)
    for figure in (
        gain_heatmap(gains, "S"),
        confusion_change_heatmap(change, [f"class {i}" for i in range(30)], "loft", "S"),
    ):
        assert "the 25 of 30 classes" in figure.alt and "the 25 of 30 classes" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    "change, words",
    [([[-3.0, 3], [0, 0]], "'a' is taken for 'b' more often (+3.0 points)"), ([[0.0, 0], [0, 0]], "No class")],
)
def test_the_largest_change_of_a_confusion(change, words):
    assert words in confusion_change_heatmap(np.array(change), ["a", "b"], "loft", "S").finding


def test_curves_of_certainty_are_accuracy_minus_certainty(figures):
    lines = figures["reliability_RS"].axes[0].lines
    (curve,) = (line for line in lines if line.get_marker() == style.MARKERS["real"])
    assert list(curve.get_ydata()) == [10, -10]


# Training ------------------------------------------------------------------------------------------------------------


def test_losses_and_accuracies_are_found():
    curves = training.loss_curves({"one": [6.0, 5, 4, 3, 2, 1], "two": [6.0, 5, 4, 3, 2, 7]}, "Loss")
    assert "from 6.00 to 4.00" in curves.finding and "1 of 2 adapters" in curves.finding and "Loss" in curves.alt
    assert "from 0.90 to 0.80" in training.loss_curves({"short": [0.9, 0.8]}).finding
    assert training.loss_curves({}).finding == "Nothing was adapted."
    history = pd.DataFrame({"step": range(4), "loss": [2.0, 1, 1, 0.5], "val_accuracy": [None, 0.5, None, 0.75]})
    assert "from 2.00 to 0.50" in training.training_curves(history).finding
    assert "75 %" in training.training_curves(history).finding
    assert "accuracy" not in training.training_curves(history.assign(val_accuracy=None)).finding
    steps = training.noising_steps([np.zeros((4, 4, 3))] * 2, [10, 900])
    assert "t = 10, t = 900" in steps.alt_text()


def test_the_most_frequent_confusion_is_found():
    heatmap = training.confusion_heatmap(np.array([[3, 1], [0, 4]]), ["one", "two"])
    assert "'one' as 'two' (25 %)" in heatmap.finding
    assert [text.get_text() for text in heatmap.axes[0].texts] == ["75", "25", "0", "100"]
    large = training.confusion_heatmap(np.eye(30), [f"class {i}" for i in range(30)])
    assert large.finding.startswith("No class") and not large.axes[0].texts


# Pictures of runs ----------------------------------------------------------------------------------------------------


def test_drawn_pictures_are_those_of_the_runs(monkeypatch):
    rows = [("datadream_cls", 4, 0), ("datadream_cls", 4, 1), ("loft", 4, 1), ("datadream_cls", 2, 1)]
    stages = pd.DataFrame(rows, columns=["method", "n_shot", "seed"])
    monkeypatch.setattr(pictures, "select_generated", lambda *_: stages)
    monkeypatch.setattr(pictures, "list_pictures", lambda stage, label, count: [(stage.seed, label, count)])
    drawn = pictures.drawn_pictures(stages, "mine", ["datadream_cls"], [4, 16], 1, 1, 3)
    assert drawn == {("datadream_cls", 4): [(1, 1, 3)]}
    assert results.select_generated and results.list_pictures


def test_letters_that_no_font_has_are_one_hint(monkeypatch, capsys, recwarn):
    monkeypatch.setitem(style.rcParams, "font.family", ["DejaVu Sans"])
    figure, (ax,) = style.panels(1, style.COLUMN, 1)
    style.label_axes(ax, "猫犬鳥", "café", "Ελλάδα, Москва")
    assert style.text_width("猫", 9) > 0
    figure.savefig(io.BytesIO(), format="png")
    assert capsys.readouterr().out.count("Noto Sans CJK") == 1
    assert not [warning for warning in recwarn if "missing" in str(warning.message)]
    ax.set_xlabel("cat")
    figure.savefig(io.BytesIO(), format="png")
    assert not capsys.readouterr().out
