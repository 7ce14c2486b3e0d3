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
from datadream_utils.plots.ablations import ablation_lines, ablation_strip, compute_lines
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
    return gains.assign(setting="R+S", accuracy=50.0, image_variance=0.0)


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
        {"classifier": classifier, "method": method, "setting": setting, "n_shot": n_shot,
         "difference": 3.0 - n_shot / 8, "low": 1.0, "high": 5.0, "p": 0.01,
         "per_dataset": {"a": 4.0, "b": 2.0}, "n_seeds": 5}
        for classifier in ("clip", "resnet") for method in ("datadream_cls", "datadream_dset")
        for setting in ("R+S", "S") for n_shot in (1, 16)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _near(paths):
    names = {"feature": [0.1, 0.2, 0.3, 0.4], "feature_shot": paths[4:8], "pixel": [0.3, 0.2, 0.1, 0.4]}
    return pd.DataFrame({"path": paths[:4], "pixel_shot": [paths[4], paths[4], *paths[5:7]]} | names)


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
        "overview": lambda: diagram.overview(
            [paths[:1], paths[1:2]], [paths[2:5], paths[5:8]], [paths[8:10], paths[10:]]
        ),
        "diagram": lambda: diagram.method_diagram(["zero", "one $2$"], [paths[:3], paths[3:6]]),
        "ablations": lambda: ablation_strip({"lora_rank": _ablation(), "n_shot": _ablation()}),
        "ablation_n_shot": lambda: ablation_lines(_ablation(), "n_shot"),
        "ablation_compute": lambda: compute_lines(_compute()),
        "alignment_RS": lambda: alignment_scatter(points, _correlations(), "R+S"),
        "fidelity": lambda: fidelity_diversity(_measures({"loft": [0.5], "fakeit": [0.4], REAL: [0.5]})),
        "copies": lambda: copy_plots.copies_by_shots(_copies()),
        "nearest_shots": lambda: copy_plots.nearest_shots({"loft": near}, near.assign(feature=near["feature"] + 0.15)),
        "worst_copies": lambda: copy_plots.worst_copies({("loft", 16, 2): near}),
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
    kinds = {re.sub("_(S|RS)$", "", name) for name in FIGURES if not name.startswith("ablation_")}
    assert kinds | {"ablation_n_shot", "ablation_compute"} == {name.removesuffix("_RS") for name in figures}
    for name, figure in figures.items():
        assert figure.name == name and len(figure.alt) > 20 and not figure.reason, name
        assert len(figure.finding.split()) <= 25 and figure.finding.count(". ") <= 1, name
        words = gallery.caption(figure).data
        assert gallery.escape_markdown(FIGURES[name].caption) in words, name
        assert ("**" in words) == bool(figure.finding), name
    assert {name for name, figure in figures.items() if not figure.finding} == {
        "teaser",
        "qualitative",
        "overview",
        "diagram",
    }


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("accuracy_bars", ["IsSynth (R+S), 80.0 %", "1 of 1 others"]),
        ("ablation_n_shot", ["0 of 2", "1 below"]),  # 4.303 * 5 / 3**0.5 = 12.4 around -4 and -15
        ("ablation_compute", ["0 of 1"]),
        ("alignment_RS", ["no relation", "+0.50 [-0.10, +0.90]"]),
        ("fidelity", ["density: LoFT (0.50; 1 of 1", "coverage: LoFT (0.50; 1 of 1"]),
        ("ablations", ["0 of 2", "1 below"]),
        ("copies", ["DataDream_cls, 1 shot", "78 % of the images", "by pixels"]),
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
        (lambda: ablation_lines(_ablation().iloc[:0], "n_shot"), "No runs differ in n_shot alone: snakemake"),
        (lambda: compute_lines(_compute()[:0]), "snakemake"),
        (lambda: forest(compare.compare_order(_results()[1], "d")[:0], "d"), "published orders"),
        (lambda: pareto(_costs(), "flops"), "No run has"),
        (lambda: pictures.qualitative([], {}, "a", "b"), "no few shots"),
        (lambda: copy_plots.copies_by_shots(_copies()[:0]), "no generated images"),
        (lambda: copy_plots.nearest_shots({}, None), "no generated images"),
        (lambda: copy_plots.worst_copies({("loft", 4, 0): None}), "no generated images"),
        (lambda: ablation_strip({"n_shot": _ablation(), "lora_rank": _ablation()[:0]}), "tiny_ablations"),
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
        assert title.removeprefix("Appendix: ") == gallery.escape_markdown(FIGURES[name].title)


# Looks ---------------------------------------------------------------------------------------------------------------


def _words(figure):
    """The texts that a figure shows, as (text, its box); without ticks beyond an axes' ends or of a hidden one."""
    figure.draw_without_rendering()
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not ax.axison or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in hidden]
    return [(text, text.get_window_extent()) for text in shown]


def _drawn_for_notebooks():
    history = pd.DataFrame({"step": range(4), "loss": [2.0, 1, 1, 0.5], "val_accuracy": [None, 0.5, None, 0.75]})
    names = ["zero", "a longer name", "two"]
    return {
        "losses": training.loss_curves({name: [6.0, 5, 4, 3, 2, 1] for name in names}, "Loss"),
        "training": training.training_curves(history),
        "confusion": training.confusion_heatmap(np.eye(3), names),
        "empty": style.empty_figure("order", f"Nothing was run: {ablations.STUDY}"),
    }


def test_letters_have_eight_points_where_a_page_is_as_wide_as_its_text(figures):
    for name, figure in (figures | _drawn_for_notebooks()).items():
        in_print = min(1, 4.8 / figure.get_figwidth())  # a wider figure is made smaller, a narrower one stays
        sizes = {text.get_text(): in_print * text.get_fontsize() for text, _ in _words(figure)}
        assert sizes and min(sizes.values()) >= 8, (name, min(sizes, key=sizes.get))
        assert figure.get_facecolor() == (1, 1, 1, 1), name


def test_words_lie_within_their_figure_and_not_upon_each_other(figures):
    for name, figure in (figures | _drawn_for_notebooks()).items():
        words = _words(figure)
        for text, box in words:
            inside = min(box.x0, box.y0) >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside, (name, text)
        level = [(text, box) for text, box in words if text.get_rotation() % 90 == 0]  # others fill no box
        for (one, first), (other, second) in combinations(level, 2):
            apart = first.x1 <= second.x0 + 1 or second.x1 <= first.x0 + 1
            assert apart or first.y1 <= second.y0 + 1 or second.y1 <= first.y0 + 1, (name, one, other)


@pytest.mark.parametrize("name", ["order", "copies", "class_gains_RS", "qualitative", "diagram", "overview"])
def test_the_same_figure_has_the_same_bytes_and_carries_its_alt_text(figures, makers, tmp_path, name):
    paths = [gallery.save_figure(makers[name](), tmp_path / str(i), name) for i in range(2)]
    for first, second in (paths, [path.with_suffix(".pdf") for path in paths]):
        assert first.read_bytes() == second.read_bytes()
    picture = Image.open(paths[0])
    assert paths[0].stat().st_size < 250_000 and round(picture.width / figures[name].get_figwidth()) == style.DPI
    assert picture.info["Description"] == figures[name].alt_text()
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_figures_are_written_with_their_page(figures, tmp_path):
    empty = [style.empty_figure(name, "Nothing was run.") for name in ("order", "ablations")]
    paths = gallery.write_figures([figures["worst_copies"], *empty], tmp_path, "gallery")
    assert [path.name for path in paths] == ["worst_copies.png", "order.png"]  # every study has an order
    written = gallery.write_tables({"conclusion": "A and B.", "pairs": _results()[1]}, tmp_path)
    assert [path.name for path in written] == ["conclusion.md", "pairs.csv", "pairs.md"]


def test_figures_of_the_appendix_come_last_in_the_gallery(figures, tmp_path):
    paths = gallery.write_figures([figures["pareto"], figures["copies"]], tmp_path, "gallery_beyond")
    assert [path.stem for path in paths] == ["copies", "pareto"]
    titles = re.findall("^## (.+)", (tmp_path / "gallery_beyond.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == ["Copies of the shots, by number of shots", "Appendix: Accuracy against seconds"]


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


def test_a_teaser_has_the_papers_methods_in_the_tables_order(figures):
    assert [ax.get_ylabel() for ax in figures["teaser"].axes] == [
        "Real images", "FakeIt", "DISEF", "DataDream_cls", "DataDream_dset"]  # fmt: skip
    assert {len(ax.images) for ax in figures["teaser"].axes} == {6}
    few = {METHODS[name].label: [np.zeros((4, 4, 3))] for name in ("issynth", "datadream_dset", "loft")}
    assert [ax.get_ylabel() for ax in teaser(few, "x", "d").axes] == ["IsSynth", "DataDream_dset", "LoFT"]


def test_bars_stand_in_two_groups_with_whiskers_that_show_on_black(figures):
    synthetic, real = figures["accuracy_bars"].axes
    assert [[bar.get_width() for bar in ax.patches] for ax in (synthetic, real)] == [[40], [78, 80]]
    (bars,) = (part for part in real.containers if hasattr(part, "errorbar"))
    assert all(line.get_path_effects() for line in [*bars.errorbar.lines[1], *bars.errorbar.lines[2]])
    for ax in (synthetic, real):
        assert [list(line.get_xdata()) for line in ax.lines if line.get_ls() == "--"] == [[78, 78]]  # Real-finetune
    one = accuracy_bars(_results()[0][1:2], "d").finding
    assert one == "Highest mean: Real-finetune (R), 78.0 %."


def test_seeds_show_below_a_wide_interval_over_images_and_the_verdict_is_a_word(figures):
    order = compare.compare_order(_results()[1], "d")
    axes = figures["order"].axes
    names = [tick.get_text() for ax in axes for tick in ax.get_yticklabels()]
    assert set(names) == {re.sub(r" \(\S+\)", "", pair) for pair in order["pair"]}
    outcomes = [text.get_text() for ax in axes for text in ax.texts]
    assert sorted(outcomes) == sorted(order["outcome"])
    alone = order[order["pair"].str.endswith("(S)")].iloc[0]
    broad, thin, dots = axes[0].lines[1:4]
    assert set(dots.get_ydata()) == {0.3} and sorted(dots.get_xdata()) == sorted(alone["per_seed"].values())
    assert broad.get_alpha() < 0.5 and thin.get_zorder() > broad.get_zorder() and thin.get_marker() == "|"
    assert list(thin.get_xdata()) == [alone["seeds_low"], alone["seeds_high"]]


def test_synthetic_images_above_real_ones_are_a_claim_about_synthetic_images():
    order = compare.compare_order(_results()[1], "d")
    row = order[order["pair"].str.endswith("(S)")].iloc[[0]]
    published = row.assign(pair="DataDream_cls (S) − Real-finetune (R)")  # Cars, Aircraft, Pets
    (ax,) = forest(published, "d").axes
    assert ax.get_title() == forest(row, "d").axes[0].get_title()


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


def test_a_part_of_the_diagram_is_frozen_or_trained(figures, makers):
    (ax,) = figures["diagram"].axes
    trained = [patch for patch in ax.patches if patch.get_hatch()]
    words = [text.get_text() for text in ax.texts]
    assert sum("loss $L_D$" in text for text in words) == 1 and sum("images $x$" in text for text in words) == 1
    assert words.count("LoRA") == 4 and words.count("adapter\nall classes") == 1
    assert len(trained) == 4 + 1 + 3  # LoRA, the key, one adapter for all and one for each of two
    assert {matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in trained} == {diagram.TRAINED}
    assert "VAE encoder" in words and "time $t$" in words and any("true ε" in text for text in words)


def test_the_diagram_names_what_the_model_predicts(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    figure = diagram.method_diagram(["a"], [[tmp_path / "0.png"]], target="v")
    assert any("true v" in text.get_text() for text in figure.axes[0].texts) and "predict v" in figure.alt


def test_the_overview_goes_round_the_classes_and_says_what_is_missing(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(16)]
    for i, path in enumerate(paths):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(path)
    figure = diagram.overview([paths[:4], paths[4:6]], [paths[6:8], []], [paths[8:16]])
    shades = [image.get_array()[0, 0, 0] for image in figure.axes[0].images]
    assert shades == [0, 4, 1, 5, 2, 3, 6, 7, *range(8, 14)]
    numbers = [text.get_text() for text in figure.axes[0].texts if text.get_text().startswith("0")]
    assert numbers == ["01", "02", "03", "04"] and figure.complete and "drawn images" in figure.alt
    empty = diagram.overview([paths[:1]], [[], []], [paths[1:]])
    assert not empty.complete and "nothing is drawn" in empty.alt


def test_ablation_draws_the_table(figures):
    upper, lower = figures["ablation_n_shot"].axes
    assert list(upper.lines[0].get_ydata()) == [40, 44] and list(lower.lines[0].get_ydata()) == [60, 75]
    assert lower.collections[0].get_segments()[0][:, 1].tolist() == [57.5, 62.5]


def test_the_strip_draws_differences_to_the_default_on_one_scale(figures):
    (ax,) = figures["ablations"].axes  # n_shot has a figure of its own
    table = _ablation()
    assert [list(bars.lines[0].get_ydata()) for bars in ax.containers] == [[-4, 0], [-15, 0]]
    low, high = table["low"][0], table["high"][0]
    assert ax.containers[0].lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([low, high])
    assert [tick.get_weight() for tick in ax.get_xticklabels()] == ["normal", "bold"]
    two = ablation_strip({"lora_rank": table, "guidance_scale": table})
    assert two.axes[0].get_ylim() == two.axes[1].get_ylim()


def test_one_seed_or_no_reference_decides_nothing():
    rows = [("S", "loft", v, [50 + v, 52 + v], v == 16, v == 16) for v in (1, 16)]
    one = _summary([(*row[:3], row[3][:1], *row[4:]) for row in rows])
    assert "With one seed" in ablation_lines(one, "n_shot").finding
    assert "With one seed" in ablation_strip({"lora_rank": one}).finding
    none = _summary([(*row[:4], False, False) for row in rows])
    assert "reference has not been run" in ablation_lines(none, "n_shot").finding
    assert "With one seed" in gain_heatmap(_gains().query("seed == 0"), "R+S").finding


def test_yes_and_no_are_words():
    rows = [("S", "loft", False, [60, 61, 62], False, False), ("S", "loft", True, [63, 64, 68], True, True)]
    (ax,) = ablation_strip({"train_text_encoder": _summary(rows)}).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["no", "yes"]


def test_images_added_are_drawn_against_real_finetune_of_the_same_seed():
    rows = [("R+S", "issynth", 0, [70, 80, 75], False, True), ("R+S", "issynth", 12, [71, 82, 78], False, False),
            ("R+S", "issynth", 50, [72, 82, 74], True, False), ("S", "issynth", 12, [60, 60, 60], False, False),
            ("S", "issynth", 50, [64, 64, 64.3], True, True)]  # fmt: skip
    figure = ablation_lines(_summary(rows), "synthetic_per_class")
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["24", "100"]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0", "24", "100"]
    assert [list(line.get_ydata()) for line in right.lines] == [[1, 2, 3], [2, 2, -1], [0, 2, 1], [0, 0]]
    assert right.lines[2].get_xdata()[0] == 0 and not right.collections  # no whiskers
    assert list(left.lines[1].get_ydata()) == pytest.approx([-4.1, 0]) and left.lines[1].get_xdata()[1] == 1
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
def test_the_scatter_shows_and_finds_what_holds_within_classes(verdict, words):
    points = _gains().query("seed == 0").assign(distance=[1.0, 2.0, 3.0, 4.0])
    figure = alignment_scatter(points, _correlations(verdict=verdict), "R+S")
    title = " ".join(figure.axes[0].get_title().split())
    assert words in figure.finding and words in title and "+0.50 [-0.10, +0.90]" in title and "-0.80" not in title
    marks = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert np.allclose(marks["FakeIt"], [[-1, -5.5], [-1, 3.55]]) and np.allclose(marks["LoFT"], [[1, 5.5], [1, -3.55]])
    none = alignment_scatter(points, _correlations(rho=np.nan).iloc[:1], "R+S")
    assert none.finding == "" and none.axes[0].get_title() == ""


def test_who_is_most_diverse_is_found_with_the_seeds_noise():
    values = {"loft": [0.5, 0.6, 0.7], "datadream_cls": [0.55, 0.6, 0.62], "datadream_dset": [0.1, 0.2, 0.3]}
    table = _measures(values | {REAL: [0.9] * 3})
    table.loc[table["method"] == "loft", "coverage"] = 0.0
    finding = fidelity_diversity(table).finding
    assert "density: LoFT (0.60; 1 of 2 others" in finding and "coverage: DataDream_cls (0.59; 0 of 2" in finding
    assert "FakeIt (0.60; 1 of 1 others" in fidelity_diversity(_measures({"loft": [0.5], "fakeit": [0.6]})).finding


def test_shares_of_copies_stay_within_their_limits():
    table = pd.DataFrame({"method": ["datadream_cls", "loft", "fakeit"] * 2, "n_shot": 1, "seed": [0, 0, 0, 1, 1, 1]})
    table = table.assign(pixel_nearer=[98.0, 60, 2, 100, 60, 0], feature_nearer=75.0, pixel_copies=0.2)
    (ax,) = copy_plots.copies_by_shots(table).axes
    ends = np.concatenate([segment for bars in ax.collections for segment in bars.get_segments()])[:, 1]
    assert ends.min() == 0 and ends.max() == 100
    assert [list(line.get_ydata()) for line in ax.lines if line.get_ls() == "--"] == [[50, 50]]
    few = table.assign(pixel_nearer=np.nan)  # fewer held-out images than shots
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
    assert set(judged.loc["fakeit", "outcome"]) == {"sees no shot"}
    assert copies.judge_copies(_copies()[:0]).empty


def test_the_run_with_most_copies_is_chosen():
    table = _copies()
    table["pixel_copies"] = [1.0, 2, 3, *table["pixel_copies"][3:]]
    assert copy_plots.most_copies(table) == copy_plots.most_copies(table, "datadream_cls") == ("datadream_cls", 1, 2)
    assert copy_plots.most_copies(table, "loft") is None and copy_plots.most_copies(table[:0]) is None


def test_the_worst_copies_of_several_runs_stand_below_each_other(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        Image.new("RGB", (20, 20)).save(path)
    near = _near(paths)
    figure = copy_plots.worst_copies(
        {("issynth", 16, 0): near, ("loft", 4, 0): near[:0], ("datadream_cls", 1, 0): near}
    )
    titles = [part.get_suptitle() for part in figure.subfigs if part.get_suptitle()]
    assert titles == [
        "IsSynth, 16-shot, seed 0: closest of 4 generated images",
        "DataDream_cls, 1-shot, seed 0: closest of 4 generated images",
    ]
    drawn = [ax.get_title() for ax in figure.subfigs[0].axes if ax.get_title()]
    assert drawn == ["0.100", "0.200", "0.400"]  # by pixels, one for each shot
    assert "pixels" in figure.subfigs[-1].texts[0].get_text() and "0.100 by pixels" in figure.finding


def test_curves_of_nearest_shots_are_named_in_the_tables_order():
    rng = np.random.default_rng(0)
    near = {name: pd.DataFrame({"feature": rng.random(50) + 0.1}) for name in ("loft", "datadream_cls", "fakeit")}
    figure = copy_plots.nearest_shots(near, pd.DataFrame({"feature": rng.random(50) + 0.1}))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["FakeIt", "DataDream_cls", "LoFT", REAL, "1 % of real images"]
    widths = [line.get_linewidth() for line in figure.axes[0].lines[:3]]
    assert widths == sorted(widths, reverse=True) and min(widths) > 0.5  # a curve under another shows beside it


def test_gains_within_noise_are_blank_and_all_settings_have_one_scale(figures):
    (ax,) = figures["class_gains_RS"].axes
    assert "blank" in figures["class_gains_RS"].get_suptitle()
    assert [text.get_text() for text in ax.texts] == ["-9", "+3"]
    one = gain_heatmap(_gains().query("seed == 0"), "R+S")
    assert len(one.axes[0].texts) == 4 and "one seed" in one.get_suptitle()
    both = pd.concat([_gains(), _gains().assign(setting="S", gain=lambda rows: 3 * rows["gain"])])
    limits = [gain_heatmap(both, setting).axes[0].collections[0].get_clim() for setting in ("S", "R+S")]
    assert limits[0] == limits[1] == pytest.approx((-27, 27))


def test_a_heat_map_of_many_classes_names_how_many_it_shows():
    rows = [("loft", i, f"class {i}", float(i)) for i in range(30)]
    gains = pd.DataFrame(rows, columns=["method", "label", "class_name", "gain"]).assign(
        setting="S", accuracy=50.0, image_variance=0.0
    )
    change = np.diag(np.arange(30.0)) - np.diag(np.arange(29.0), 1)
    changed = confusion_change_heatmap(change, [f"class {i}" for i in range(30)], "loft", "S")
    for count, figure in ((25, gain_heatmap(gains, "S")), (10, changed)):
        part = f"the {count} of 30 classes"
        assert part in figure.alt and part in figure.get_suptitle()


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
    figure, (ax,) = style.panels(1, 1)
    style.label_axes(ax, "猫犬鳥", "café", "Ελλάδα, Москва")
    assert style.text_width("猫", 9) > 0
    figure.savefig(io.BytesIO(), format="png")
    assert capsys.readouterr().out.count("Noto Sans CJK") == 1
    assert not [warning for warning in recwarn if "missing" in str(warning.message)]
    ax.set_xlabel("cat")
    figure.savefig(io.BytesIO(), format="png")
    assert not capsys.readouterr().out
