"""The known data sets: one file ``params/datasets/<name>.yaml`` for each.

A file says what the classes are called, where the images come from, how the original archive is laid out, which hub
page has a copy, and what may be done with the pictures.
"""

import functools
import re
from dataclasses import dataclass, field

from datadream_utils.files import read_yaml
from datadream_utils.params import ROOT

FOLDER = ROOT / "params" / "datasets"


@dataclass(frozen=True)
class Known:
    """One file of ``params/datasets``: the classes in label order, and everything else that it states."""

    name: str
    keys: tuple[str, ...]  # folder, file prefix or label in the archive
    class_names: tuple[str, ...]  # words for a prompt
    authors_names: tuple[str, ...]  # the strings in the authors' code
    facts: dict = field(repr=False)  # everything else in the file

    def how_to(self, root):
        """What to put into the folder ``root``, in one clause."""
        note = f" ({self.facts['note']})" if "note" in self.facts else ""
        layout = self.facts["archive"]["needs"]
        return f"put {layout} there, from {self.facts['source']}{note}; licence: {self.facts['licence']}"

    def label_of(self, name):
        """The label of the class that a folder, list or hub page calls ``name``, or None.

        Case, punctuation and the order of words do not count, nor which of several names, comma between, it is.
        """
        hits = {self._aliases.get(form) for part in (name, *name.split(",")) for form in _forms(part)} - {None}
        return hits.pop() if len(hits) == 1 else None

    @functools.cached_property
    def _aliases(self):
        """Every form of every class's key, words and authors' string, to its label; None where two classes share it."""
        aliases = {}
        for label, names in enumerate(zip(self.keys, self.class_names, self.authors_names, strict=True)):
            below = names[0].partition("/")[2]  # SUN397's keys start with a letter's folder
            for form in set().union(*(_forms(name) for name in (*names, below))):
                aliases[form] = None if aliases.get(form, label) != label else label
        return aliases


def _forms(name):
    """A name without case and punctuation, in two forms: its words run together, and its words sorted."""
    words = re.findall(r"\w+", name.lower().replace("_", " "))
    return {"".join(words), " ".join(sorted(words))} - {""}


def known_names():
    """The names of the known data sets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def read_known(name):
    """The file of a known data set as ``Known``, or None for another name."""
    if name not in known_names():
        return None
    facts = read_yaml(FOLDER / f"{name}.yaml")
    rows = facts.pop("classes")  # [key, words for a prompt, the authors' string where it differs]
    if isinstance(facts.get("definitions"), str):  # the name of a file of definitions by key
        by_key = read_yaml(ROOT / "params" / "definitions" / f"{facts['definitions']}.yaml")
        facts["definitions"] = {row[1]: by_key[row[0]] for row in rows}
    return Known(
        name=name,
        keys=tuple(row[0] for row in rows),
        class_names=tuple(row[1] for row in rows),
        authors_names=tuple(row[-1] for row in rows),
        facts=facts,
    )
