"""Widgets on a classifier's predictions: the images behind a confusion, and a box for one's own picture."""

import io
from functools import cached_property

import ipywidgets
import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle
from PIL import Image, ImageFilter

from datadream_utils.analysis.results import count_confusions
from datadream_utils.data.images import read_image
from datadream_utils.errors import InputError
from datadream_utils.interactive.explorer import Explorer, Panel
from datadream_utils.plots.style import BLUE, ORANGE, NotebookFigure, describe, literal, new_figure

PEN = 10  # cells of the drawing grid each way: each is 2x2 pixels of the 20x20 box that holds MNIST's digits


def confusion_browser(predictions, root, class_names, count=16):
    """What do the mistakes look like? The confusion matrix, and the test images behind one cell of it.

    predictions: a row per test image (``file``, ``label``, ``prediction``, ``probability``); root: where files start.
    """
    names = list(class_names)
    counts = count_confusions(predictions, len(names))
    wrong = counts - np.diag(np.diag(counts))
    start = np.unravel_index(wrong.argmax(), wrong.shape)

    def draw(true, predicted):
        k, guess = names.index(true), names.index(predicted)
        behind = predictions[(predictions["label"] == k) & (predictions["prediction"] == guess)]
        surest = behind.nlargest(count, "probability")
        pictures = [(read_image(root / row.file), f"{row.probability:.0%}") for row in surest.itertuples()]
        return confusion_cell(counts, names, k, guess, pictures)

    return Explorer(draw, {"True class": names, "Predicted class": names}, [names[i] for i in start])


def confusion_cell(counts, class_names, true, predicted, pictures):
    """The confusion matrix with one cell marked, and ``pictures``, [(picture, caption), ...], behind that cell."""
    columns = 8
    rows = max(2, -(-len(pictures) // columns))
    figure = NotebookFigure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    ax = left.subplots()
    ax.imshow(np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True))), cmap="cividis", vmin=0, vmax=1)
    ax.add_patch(Rectangle((predicted - 0.5, true - 0.5), 1, 1, fill=False, ec="red", lw=2))
    ticks = range(len(class_names)) if len(class_names) <= 20 else [true, predicted]
    ax.set_xticks(ticks, [literal(class_names[i]) for i in ticks], rotation=90, fontsize=7)
    ax.set_yticks(ticks, [literal(class_names[i]) for i in ticks], fontsize=7)
    ax.set(xlabel="predicted", ylabel="true")
    axes = right.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (picture, caption) in zip(axes, pictures, strict=False):
        ax.imshow(np.asarray(picture), interpolation="nearest")
        ax.set_title(caption, fontsize=7)
    count, of = counts[true, predicted], counts[true].sum()
    what = "recognised" if true == predicted else f"taken for '{class_names[predicted]}'"
    title = f"'{class_names[true]}' {what}: {count} of {of}" + (", the surest:" if pictures else "")
    right.suptitle(literal(title), fontsize=9)
    surest = " " + ", ".join(caption for _, caption in pictures) if pictures else ""
    return describe(figure, f"{title}{surest}. Left: the confusion matrix, with this cell marked.")


class PredictionBox(Explorer):
    """What does the classifier make of *your* picture? An upload, or a drawing on a grid of ``PEN`` x ``PEN`` buttons.

    The grid is plain ipywidgets: no further package, and Tab and Space draw as well as a mouse does.
    predict: ``predict(PIL image) -> (what the classifier sees, probabilities)``; example: the path of the picture that
    is shown first; drawing: offer the grid, for white digits on black.
    """

    def __init__(self, predict, class_names, example, drawing=True):
        first = read_image(example)
        super().__init__(lambda picture: draw_prediction(picture, *predict(picture), list(class_names)), {}, [first])
        self.picture, self.drawing, self.clearing = first, drawing, False

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


def draw_prediction(picture, seen, probabilities, class_names, top=10):
    """A picture as given, as the classifier sees it, and the probabilities of its likeliest classes."""
    figure, axes = new_figure(1, 3, 8, 2.6, width_ratios=(1, 1, 1.6))
    for ax, image, title in zip(axes[0], (picture, seen), ("your picture", "what the classifier sees"), strict=False):
        ax.imshow(np.asarray(image), interpolation="nearest")
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])  # its frame stays: a white picture on a white page
    best = np.argsort(probabilities)[::-1][:top]
    ax = axes[0, 2]
    ax.barh([literal(class_names[k]) for k in best], 100 * probabilities[best], color=[ORANGE, *[BLUE] * (top - 1)])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="probability (%)")
    ax.set_title(f"{literal(class_names[best[0]])}: {probabilities[best[0]]:.0%}", fontsize=10)
    sns.despine(ax=ax)
    return figure
