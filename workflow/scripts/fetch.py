"""Fetch what a study needs from elsewhere, so that it can run on machines without internet.

    python -m workflow.scripts.fetch params/studies/paper.yaml
    python -m workflow.scripts.fetch params/studies/paper.yaml --check

Models go to the hub's own cache (``HF_HOME``), and of each page only the files that are read; data sets and split files
go to ``data_root``. What is there is left as it is. The sizes are said first, and nothing is begun that the disk has no
room for. ``--check`` downloads nothing: it says everything that is missing, and where it belongs. A model is checked by
the list of files of its hub page, a data set by listing its pictures.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, RepoFile, constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from datadream_utils.backbones.load import ROLES, cached_conversion, files_read, opened, proposed_conversion
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.digits import WRITERS
from datadream_utils.data.hub import hub_bytes
from datadream_utils.data.known import read_known
from datadream_utils.data.splits import split_path
from datadream_utils.diffusion.captions import STAND_IN
from datadream_utils.errors import InputError
from datadream_utils.params import plays_a_part, resolve
from workflow.scripts.study import read_study

GB = 10**9


@dataclass(frozen=True)
class Model:
    """A model of a study: the parameter that names it (a key of ``ROLES``), a folder or hub id, and its revision."""

    parameter: str
    name: str
    revision: str

    def __str__(self):
        return f"{self.parameter} {self.name}" + (f" at {self.revision}" if self.revision else "")

    def missing(self):
        """A sentence for each thing that loading it without network would lack."""
        folder = resolve(self.name)
        if folder.exists():
            try:
                with opened(self.parameter, self.name):
                    self._choose({path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*")})
            except InputError as error:
                return [str(error)]
            return []
        cache = Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"
        fix = f"run this command where the internet is, or copy {cache} from a machine where it ran"
        try:
            pages = self._pages(_cached_page, lambda name: cached_conversion(name, "main"))
        except CachedRepoTreeNotFoundError:
            return [f"{self} is not in the cache of downloads: {fix}."]
        except ValueError as error:
            return [f"{self}: {error}: {fix}."]
        lost = ", ".join(file for file, _ in self._not_here(pages))
        return [f"{self} lacks {lost}: {fix}."] if lost else []

    def bytes_to_fetch(self):
        """How many bytes ``fetch`` downloads. InputError when the model cannot be had."""
        return sum(size for _, size in self._not_here(self._hub_pages()))

    def fetch(self):
        """Download the files that are read; those in the cache are not downloaded again."""
        for revision, files in self._hub_pages().items():
            snapshot_download(self.name, revision=revision, allow_patterns=list(files))

    def _hub_pages(self):
        if resolve(self.name).exists():
            raise InputError(" ".join(self.missing()))
        with opened(self.parameter, self.name, self.revision):
            return self._pages(_hub_page, proposed_conversion)

    def _pages(self, read_page, find_conversion):
        """``{revision: {file that is read: bytes}}``: the page, and the conversion of one without safetensors."""
        revision = self.revision or "main"
        page = read_page(self.name, revision)
        read, conversion = self._choose(page, None if self.revision else lambda: find_conversion(self.name))
        pages = {revision: {file: page[file] for file in read}}
        if conversion:
            pages[conversion] = {"model.safetensors": read_page(self.name, conversion)["model.safetensors"]}
        return pages

    def _choose(self, files, find_conversion=None):
        """``(files that are read, revision of the conversion or None)``; ValueError where weights are nowhere."""
        read, bare = files_read(self.parameter, files)
        conversion = find_conversion() if bare == ["."] and find_conversion else None
        if bare and not conversion:
            raise ValueError(f"{' and '.join(str(PurePosixPath(part, '*.safetensors')) for part in bare)} is missing")
        return read, conversion

    def _not_here(self, pages):
        """``(file, bytes)`` of the files of ``pages`` that are not whole in the cache."""
        for revision, files in pages.items():
            for file, size in files.items():
                path = try_to_load_from_cache(self.name, file, revision=revision)
                if not isinstance(path, str) or Path(path).stat().st_size != size:
                    yield file, size


@dataclass(frozen=True)
class Data:
    """A data set of a study, with the split file of its runs ("" for none)."""

    name: str
    data_root: str
    split_file: str

    def __str__(self):
        return f"data set {self.name}"

    def missing(self):
        """A sentence for each thing that reading it without network would lack."""
        split, sentences = split_path(self.split_file, self.data_root), []
        if self.split_file and not split.is_file():
            sentences.append(f"{self}: put its split file {self.split_file} at {split}.")
        if self._must_be_exported():
            known, folder = read_known(self.name), resolve(self.data_root) / self.name
            source = f"run this command where the internet is, or {known.how_to(folder)}"
            return [*sentences, f"{self} is not at {folder}: {source}."]
        try:
            if self.name not in WRITERS and not sentences:  # the digits are made without network
                load_dataset(self.name, self.data_root, self.split_file)
        except InputError as error:
            return [f"{self}: {error}"]
        return sentences

    def bytes_to_fetch(self):
        """How many bytes ``fetch`` downloads, without a split file's. InputError when the data set cannot be had."""
        if not self._must_be_exported():
            return 0
        return hub_bytes(read_known(self.name), resolve(self.data_root) / self.name)

    def fetch(self):
        """Download it as a run would."""
        load_dataset(self.name, self.data_root, self.split_file)

    def _must_be_exported(self):
        """Will ``load_dataset`` ask the hub for it?"""
        places = (resolve(self.data_root) / self.name, resolve(self.name))
        found = any(place.is_dir() and any(place.iterdir()) for place in places)
        return read_known(self.name) is not None and not found


def _hub_page(name, revision):
    """``{file: bytes}`` of a hub page."""
    page = HfApi().list_repo_tree(name, recursive=True, revision=revision)
    return {file.path: file.size for file in page if isinstance(file, RepoFile)}


def _cached_page(name, revision):
    """``_hub_page`` as it was when the model was fetched."""
    return {file.path: file.size for file in get_cached_repo_tree(name, revision=revision)}


def list_parts(study):
    """The ``Model``s and ``Data`` that the runs of a study load, each once."""
    models = {}
    for run in study.runs().values():
        for stage in study.stages(run):
            p = study.params(run, stage)
            read = [name for name in ROLES if name in type(p).model_fields and plays_a_part(name, run.system)]
            if "captioner" in read and p.captioner == STAND_IN:
                read[read.index("captioner")] = "filter_model"
            for parameter in read:
                revision = getattr(p, f"{parameter.removesuffix('_model')}_revision")
                model = Model(parameter, getattr(p, parameter), revision)
                models.setdefault((ROLES[parameter], model.name, revision), model)
    root, split = study.value("data_root"), study.value("split_file")
    data = [Data(name, root, study.split_files.get(name, split)) for name in study.datasets]
    return [*sorted(models.values(), key=str), *data]


def find_shortages(sizes):
    """A sentence for each disk without room. sizes: ``{part: bytes to fetch}``."""
    needed = {}  # {device number: [a folder on it, bytes]}
    for part, size in sizes.items():
        target = Path(constants.HF_HUB_CACHE) if isinstance(part, Model) else resolve(part.data_root)
        place = next(path for path in (target, *target.parents) if path.exists())
        needed.setdefault(place.stat().st_dev, [place, 0])[1] += size
    free = {place: shutil.disk_usage(place).free for place, _ in needed.values()}
    fix = "make room there, or set HF_HOME (models) or data_root (data sets) to a place on another disk"
    return [
        f"{size / GB:.1f} GB are needed at {place} and {free[place] / GB:.1f} GB are free: {fix}."
        for place, size in needed.values()
        if size > free[place]
    ]


def fetch(lacking):
    """Fetch parts; returns ``{part: sentences}`` of what is missing afterwards.

    lacking: ``{part: sentences}`` before. A part that cannot be had does not stop the others. InputError, with nothing
    fetched, where a disk has no room.
    """
    lacking, sizes = dict(lacking), {}
    for part in lacking:
        try:
            sizes[part] = part.bytes_to_fetch()
        except Exception as error:  # of whatever layer of the network, or an InputError
            lacking[part] = [str(error) if isinstance(error, InputError) else f"{part}: {_first_line(error)}."]
    for part, size in sizes.items():
        print(f"{size / GB:8.2f} GB  {part}")
    print(f"{sum(sizes.values()) / GB:8.2f} GB  to download", flush=True)
    if shortages := find_shortages(sizes):
        raise InputError(" ".join(shortages))
    for part in sizes:
        try:
            part.fetch()
        except Exception as error:  # likewise; what it leaves open is said below
            print(f"{part}: {_first_line(error)}.", file=sys.stderr)
        lacking[part] = part.missing()
    return lacking


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def main(arguments=None):
    """Run the command; returns the exit status: 1 if something is missing, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a study file, params/studies/<name>.yaml")
    parser.add_argument("--check", action="store_true", help="download nothing; say what is missing")
    options = parser.parse_args(arguments)
    try:
        lacking = {}
        for part in list_parts(read_study(options.study)):
            if sentences := part.missing():
                lacking[part] = sentences
            print(f"{'missing' if sentences else 'here':8} {part}", flush=True)
        if lacking and not options.check:
            lacking = fetch(lacking)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    sentences = [sentence for of_part in lacking.values() for sentence in of_part]
    print("\n".join(sentences) or "Everything is here; with HF_HUB_OFFLINE=1 the study runs without internet.")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
