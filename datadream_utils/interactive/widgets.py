"""Pictures to play with: each answers one question. All take data, none knows the notebook it stands in.

In a live notebook labelled controls stand above the picture and redraw it; every one can be used from the keyboard.
Where a notebook runs without a front end (papermill, nbconvert) only the picture is shown, laid out so that it answers
the question by itself, and no widget is made: the executed file holds no widget state.
"""

import inspect
import io
from functools import cache, cached_property

import ipywidgets
import numpy as np
from IPython.display import Markdown, display
from PIL import Image, ImageFilter

from datadream_utils.data.images import read_image
from datadream_utils.diffusion.probe import find_nearest, lora_spectra
from datadream_utils.errors import InputError
from datadream_utils.interactive import widget_figures
from datadream_utils.plots import style as plots
from datadream_utils.plots.live import is_live

BUTTONS = 12  # words that are shown as buttons beside each other
PEN = 10  # cells of the drawing grid each way: each is 2x2 pixels of the 20x20 box that MNIST's digits stand in


class Panel(ipywidgets.VBox):
    """Controls in a column; pages made from a notebook that was used live say so in their place."""

    def __repr__(self):
        return "(Controls: run the notebook to use them.)"


class Explorer:
    """A picture and the controls that redraw it.

    draw: ``draw(*values) -> figure`` for one value of each control, in order.
    controls: ``{label: values}``, or ``{label: {words: value}}``; up to ``BUTTONS`` words are buttons, more words and
    numbers a slider. Not a list to drop down: JupyterLab takes the keys pressed on a closed one for its own (ipywidgets
    issue 3912).
    start: the values at the beginning; overview: ``overview() -> figure``, shown without a front end.
    """

    def __init__(self, draw, controls, start, overview=None):
        self.draw, self.choices, self.start, self.overview = draw, controls, start, overview
        self.handle = self.words = None

    @cached_property
    def controls(self):
        """The ipywidgets, made when they are first needed: ``{label: widget}``."""
        made = {}
        for (label, values), start in zip(self.choices.items(), self.start, strict=True):
            numbers = not any(isinstance(value, str) for value in values)
            named = (
                values.items()
                if isinstance(values, dict)
                else [(v if isinstance(v, str) else f"{v:g}", v) for v in values]
            )
            buttons = not numbers and len(values) <= BUTTONS
            kind = ipywidgets.ToggleButtons if buttons else ipywidgets.SelectionSlider
            made[label] = kind(
                options=list(named),
                value=start,
                description=label,
                style={"description_width": "9em"} | ({"button_width": "auto"} if buttons else {}),
                layout={"width": "auto" if buttons else "36em", "max_width": "100%"},
                **({} if buttons else {"readout": numbers}),  # long words would be cut: the picture has them
            )
            made[label].observe(self.redraw, "value")
        return made

    def figure(self):
        """The picture for the controls as they stand."""
        return self.draw(*(control.value for control in self.controls.values()))

    def panel(self):
        """What stands above the picture."""
        return Panel(list(self.controls.values()))

    def redraw(self, _change=None):
        """Show the picture anew, in the same place."""
        if self.handle:
            figure = self.figure()
            self.handle.update(figure)
            if self.words:
                self.words.update(plots.says(figure))

    def still(self):
        """The picture that a page without controls shows."""
        return self.overview() if self.overview else self.draw(*self.start)

    def _ipython_display_(self):
        if not is_live():
            plots.show(self.still())
            return
        figure = self.figure()
        if figure.empty:
            plots.show(figure)
            return
        self.words = display(plots.says(figure), display_id=True) if figure.sentence else None
        display(self.panel())
        self.handle = display(figure, display_id=True)


def choose(draw, label, values, start=None):
    """One list to choose from: ``draw(value) -> figure``, kept once drawn, for ``values`` or ``{words: value}``."""
    named = values if isinstance(values, dict) else {value: value for value in values}
    first = next((name for name, value in named.items() if start in (None, value)), None)
    return Explorer(cache(lambda name: draw(named[name])), {label: list(named)}, [first])


def noise_slider(noised, guesses, timesteps):
    """What does the model see at timestep t, and what does it make of it? Pictures as ``probe.through_noise`` gives."""
    at = {int(t): pair for t, pair in zip(timesteps, zip(noised, guesses, strict=True), strict=True)}
    names = ["what it sees", "its guess of the clean picture"]

    def draw(t):
        return plots.show_grid([at[t]], column_titles=names, title=f"Timestep t = {t}", side=2.2)

    def overview():
        title = "One real picture through the noise: what the model sees, what it takes it for"
        rows = list(zip(*at.values(), strict=True))
        return plots.show_grid(rows, names, [f"t = {t}" for t in at], title, side=0.9)

    return Explorer(draw, {"Timestep t": list(at)}, [list(at)[len(at) // 2]], overview)


def trajectory_slider(samples, title):
    """How does a picture come about? ``samples``: ``{who draws: {step: picture}}`` of ``probe.trajectory``."""
    steps = list(next(iter(samples.values())))

    def draw(step):
        row = [frames[step] for frames in samples.values()]
        return plots.show_grid([row], column_titles=list(samples), title=f"{title}, after step {step}", side=2.2)

    def overview():
        rows = [list(frames.values()) for frames in samples.values()]
        return plots.show_grid(rows, list(samples), [f"step {step}" for step in steps], title, side=0.9)

    return Explorer(draw, {"Denoising step": steps}, [steps[-1]], overview)


def guidance_grid(pictures, title):
    """What do guidance and adapter each do? ``pictures``: ``{(guidance scale, adapter scale): [picture, ...]}``."""
    guidance, adapter = (sorted(set(values)) for values in zip(*pictures, strict=True))

    def draw(w, s):
        where = f"guidance {w:g}, adapter × {s:g}"
        return plots.show_grid([pictures[w, s]], title=f"{title}: {where}", side=1.5)

    def overview():
        rows = [[pictures[w, s][0] for w in guidance] for s in adapter]
        return plots.show_grid(rows, [f"adapter × {s:g}" for s in adapter], [f"w = {w:g}" for w in guidance], title)

    start = [guidance[len(guidance) // 2], 1 if 1 in adapter else adapter[-1]]
    return Explorer(draw, {"Guidance scale w": guidance, "Adapter scale": adapter}, start, overview)


def gallery(sets, shots, class_names, features, label=0, method="", count=8):
    """Is a generated picture a copy? Samples of a class and method, with the nearest few-shot image under each.

    sets: ``{method: files[label]}``; shots: ``files[label]``; features: ``features(paths) -> (n, d)``, unit length.
    """
    of_shots = cache(lambda k: features(shots[k]))

    @cache
    def draw(class_name, method):
        k = class_names.index(class_name)
        drawn = sets[method][k][:count]
        indices, likeness = find_nearest(features(drawn), of_shots(k))
        near = [shots[k][i] for i in indices]
        title = f"{method}, {class_name}: each sample and the real shot most like it (cosine of CLIP features)"
        return plots.show_grid(
            [drawn, near], ["generated", "nearest shot"], [f"{x:.2f}" for x in likeness], title, 0.95
        )

    names = list(class_names)
    return Explorer(draw, {"Class": names, "Method": list(sets)}, [names[label], method or next(iter(sets))])


def class_rows(rows, class_names, dataset, label=0):
    """Is it so for every class? The teaser of a class: ``rows(label) -> {source: [picture, ...]}``."""
    names = list(class_names)
    return choose(lambda name: plots.teaser(rows(names.index(name)), name, dataset), "Class", names, names[label])


def lora_browser(pipe, folders):
    """Which layers change, and in how many directions? ``folders``: ``{adapter name: folder}``."""
    spectra = cache(lambda name: lora_spectra(pipe, folders[name]))
    first = next(iter(folders))
    layers = list(spectra(first))
    most = max(layers, key=lambda layer: spectra(first)[layer][1])

    def draw(name, layer):
        return widget_figures.lora_changes(spectra(name), layer, name)

    return Explorer(draw, {"Adapter": list(folders), "Layer": layers}, [first, most])


def confusion_browser(predictions, root, class_names, count=16):
    """What do the mistakes look like? The confusion matrix, and the test images behind one cell of it.

    predictions: a row per test image (``file``, ``label``, ``prediction``, ``probability``); root: where files start.
    """
    names = list(class_names)
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (predictions["label"], predictions["prediction"]), 1)
    wrong = counts - np.diag(np.diag(counts))
    start = np.unravel_index(wrong.argmax(), wrong.shape)

    def draw(true, predicted):
        k, guess = names.index(true), names.index(predicted)
        behind = predictions[(predictions["label"] == k) & (predictions["prediction"] == guess)]
        surest = behind.nlargest(count, "probability")
        pictures = [(read_image(root / row.file), f"{row.probability:.0%}") for row in surest.itertuples()]
        return widget_figures.confusion_cell(counts, names, k, guess, pictures)

    return Explorer(draw, {"True class": names, "Predicted class": names}, [names[i] for i in start])


class PredictionBox(Explorer):
    """What does the classifier make of *your* picture? An upload, or a drawing on a grid of ``PEN`` x ``PEN`` buttons.

    The grid is plain ipywidgets: no further package, and Tab and Space draw as well as a mouse does.
    predict: ``predict(PIL image) -> (what the classifier sees, probabilities)``; example: the path of the picture that
    is shown first; drawing: offer the grid, for white digits on black.
    """

    def __init__(self, predict, class_names, example, drawing=True):
        picture = read_image(example)
        super().__init__(
            lambda picture: widget_figures.prediction(picture, *predict(picture), list(class_names)), {}, [picture]
        )
        self.picture, self.drawing, self.clearing = picture, drawing, False

    def figure(self):
        """The picture as it stands, and what is predicted."""
        return self.draw(self.picture)

    @cached_property
    def controls(self):
        """``{label: widget}``; the cells of the grid are under "row 1, column 1" and so on."""
        upload = ipywidgets.FileUpload(accept="image/*", description="Upload a picture", layout={"width": "14em"})
        upload.observe(self._uploaded, "value")
        controls = {"Upload a picture": upload, "Message": ipywidgets.Label("")}
        if self.drawing:
            clear = ipywidgets.Button(description="Clear the drawing", layout={"width": "14em"})
            clear.on_click(self._clear)
            controls["Clear the drawing"] = clear
            shared = {"layout": ipywidgets.Layout(width="1.8em", height="1.8em", margin="0", padding="0")}
            for i in range(PEN * PEN):
                where = f"row {i // PEN + 1}, column {i % PEN + 1}"
                controls[where] = ipywidgets.ToggleButton(tooltip=where, **shared)
                controls[where].observe(self._drawn, "value")
        return controls

    def panel(self):
        """Upload and message; below them the grid."""
        upload, message, *rest = self.controls.values()
        rows = [ipywidgets.HBox([upload, *rest[:1]]), message]
        if self.drawing:
            columns = f"repeat({PEN}, 1.8em)"
            rows.append(ipywidgets.GridBox(rest[1:], layout={"grid_template_columns": columns, "grid_gap": "1px"}))
        return Panel(rows)

    def _cells(self):
        return [control for label, control in self.controls.items() if label.startswith("row ")]

    def _drawn(self, change):
        change["owner"].description = "●" if change["new"] else ""
        if not self.clearing:
            self.picture = pen_picture([cell.value for cell in self._cells()])
            self.redraw()

    def _clear(self, _button):
        self.clearing = True  # one new picture at the end, not one for each cell
        for cell in self._cells():
            cell.value = False
        self.clearing = False
        self.picture = pen_picture([False] * PEN * PEN)
        self.redraw()

    def _uploaded(self, change):
        for file in change["new"]:
            try:
                self.picture = read_image(io.BytesIO(bytes(file["content"])))
                self.controls["Message"].value = f"{file['name']}, {self.picture.width} x {self.picture.height} pixels"
            except InputError:
                self.controls["Message"].value = f"{file['name']} cannot be read as a picture: try a PNG or JPEG file."
        self.redraw()


def pen_picture(cells):
    """The drawing as MNIST's digits are: white on black, 28x28 pixels, its 20x20 box in the middle, soft edges."""
    drawn = Image.fromarray(255 * np.reshape(cells, (PEN, PEN)).astype(np.uint8)).resize((20, 20), Image.Resampling.BOX)
    picture = Image.new("L", (28, 28))
    picture.paste(drawn, (4, 4))
    return picture.filter(ImageFilter.GaussianBlur(0.7)).convert("RGB")


def show_source(function):
    """Show a function's source, highlighted, as the cell's output."""
    display(Markdown(f"```python\n{inspect.getsource(function)}```"))
