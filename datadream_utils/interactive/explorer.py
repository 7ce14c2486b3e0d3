"""A picture with the controls that redraw it; and the source of a function.

In a live notebook labelled controls stand above the picture; every one can be used from the keyboard. Where a notebook
runs without a front end (papermill, nbconvert) only the picture is shown, in a layout that answers the question by
itself, and no widget is made: the executed file holds no widget state.
"""

import inspect
from functools import cache, cached_property

import ipywidgets
from IPython.display import Markdown, display

from datadream_utils.plots.gallery import caption, show, show_committed
from datadream_utils.plots.style import is_live

BUTTONS = 12  # at most so many words are buttons beside each other


class Panel(ipywidgets.VBox):
    """Controls in a column. Their text stands in for them on pages made from a notebook that was used live."""

    def __repr__(self):
        return "(Controls: run the notebook to use them.)"


class Explorer:
    """A picture and the controls that redraw it.

    draw: ``draw(*values) -> figure`` for one value of each control, in order.
    controls: ``{label: values}``; up to ``BUTTONS`` words are buttons, more words and numbers a slider. Not a list to
    drop down: JupyterLab takes the keys pressed on a closed one for its own (ipywidgets issue 3912).
    start: the values at the beginning; overview: ``overview() -> figure``, shown without a front end (None: the
    picture of ``start``).
    """

    def __init__(self, draw, controls, start, overview=None):
        self.draw, self.choices, self.start, self.overview = draw, controls, start, overview
        self.picture_shown = self.caption_shown = None  # display handles, in a live notebook

    @cached_property
    def controls(self):
        """The ipywidgets, made when they are first needed: ``{label: widget}``."""
        made = {}
        for (label, values), start in zip(self.choices.items(), self.start, strict=True):
            numbers = not any(isinstance(value, str) for value in values)
            named = [(v if isinstance(v, str) else f"{v:g}", v) for v in values]
            buttons = not numbers and len(values) <= BUTTONS
            kind = ipywidgets.ToggleButtons if buttons else ipywidgets.SelectionSlider
            made[label] = kind(
                options=named,
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
        """Show the picture and its caption anew, in the same place."""
        if self.picture_shown:
            figure = self.figure()
            self.picture_shown.update(figure)
            if self.caption_shown:
                self.caption_shown.update(caption(figure))

    def still(self):
        """The picture that a page without controls shows."""
        return self.overview() if self.overview else self.draw(*self.start)

    def _ipython_display_(self):
        figure = self.figure() if is_live() else self.still()
        if figure.reason or not is_live():
            show(figure)
            return
        self.caption_shown = display(caption(figure), display_id=True) if caption(figure).data else None
        display(self.panel())
        self.picture_shown = display(figure, display_id=True)
        show_committed(figure)


def choose(draw, label, values, start=None):
    """An explorer with one list to choose from.

    draw: ``draw(value) -> figure``, called once for each value; values: a list, or ``{words: value}``; start: the value
    at the beginning (None: the first).
    """
    named = values if isinstance(values, dict) else {value: value for value in values}
    first = next((name for name, value in named.items() if start in (None, value)), None)
    return Explorer(cache(lambda name: draw(named[name])), {label: list(named)}, [first])


def show_source(function):
    """Show a function's source, highlighted and folded, as the cell's output."""
    summary = f"<details><summary>The source of <code>{function.__name__}</code></summary>"
    display(Markdown(f"{summary}\n\n```python\n{inspect.getsource(function)}```\n\n</details>"))
