"""The few real images: drawn from the train split, or read from a list; written as a list."""

from datadream_utils.data.splits import PictureIndex
from datadream_utils.errors import InputError, name_few
from datadream_utils.files import atomic_write, read_bytes
from datadream_utils.params import resolve
from datadream_utils.seeds import permuted


def few_shot(data, n_shot, seed, shots_file=""):
    """The few real images: ``[[path, ...] per class]``, ``n_shot`` paths of each class's train images.

    The k-shot set is the first k of one fixed permutation per (seed, class), so the sets are nested. The permutation
    is of the sorted file names: nothing else on the machine matters. With a ``shots_file`` (see ``write_shots``) the
    first ``n_shot`` that it lists of each class are taken instead. InputError for a class with too few images.
    """
    if shots_file:
        return read_shots(shots_file, data, n_shot)
    counts = {folder: len(paths) for folder, paths in zip(data.folders, data.files["train"], strict=True)}
    if few := {folder: count for folder, count in counts.items() if count < n_shot}:
        raise InputError(
            f"{data.root}: train {name_few(few)}, fewer than n_shot={n_shot}: add images or set n_shot to "
            f"{min(few.values())} or less."
        )
    return [
        permuted(paths, "few_shot", seed, folder)[:n_shot]
        for folder, paths in zip(data.folders, data.files["train"], strict=True)
    ]


def write_shots(data, shots, path):
    """Write few shots as a text file that ``few_shot(..., shots_file=path)`` reads: ``<class folder>/<file>`` lines.

    shots: ``[[path, ...] per class]``, as ``few_shot`` gives them.
    """
    train = PictureIndex(data.root, data.folders, {"train": data.files["train"]})
    lines = [f"# few shots of {data.name}: n_shot={len(shots[0])} for each of {len(shots)} classes"]
    lines += [f"# {line}" for line in f"split: {data.split}".splitlines()]
    for label, (folder, files) in enumerate(zip(data.folders, shots, strict=True)):
        for file in files:
            short = f"{folder}/{file.name}"
            name = short if train.find(short) == (file, label) else file.relative_to(data.root).as_posix()
            lines.append(f"./{name}" if name[0] == "#" or name != name.strip() else name)
    with atomic_write(resolve(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_shots(where, data, n_shot):
    """Read a few-shot list: per class the first ``n_shot`` paths that the text file names, in its order.

    A line is ``<class folder>/<file>`` or a path relative to ``data.root``; lines that start with # are comments.
    InputError naming file and line for a picture that is not of the train split or named twice, and for a class with
    fewer than ``n_shot``.
    """
    try:
        lines = read_bytes(resolve(where)).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"shots file {where} cannot be read ({error}): give the path of a text file.") from None
    train = PictureIndex(data.root, data.folders, {"train": data.files["train"]})
    others = PictureIndex(data.root, data.folders, {k: v for k, v in data.files.items() if k != "train"})
    shots, first_line = [[] for _ in data.folders], {}
    for number, line in enumerate(lines, 1):
        name = line.strip().removeprefix("./")
        if not name or line.strip().startswith("#"):
            continue
        if (picture := train.find(name)) is None:
            reason = "belongs to val or test" if others.find(name) else "is not there"
            raise InputError(
                f"{where}, line {number}: {name!r} {reason}, it must be a train image of {data.name}: "
                "remove the line, or use the data set and split that the list was made from."
            )
        path, label = picture
        if path in first_line:
            earlier = first_line[path]
            raise InputError(f"{where}, line {number}: {name!r} stands there twice (line {earlier}): remove one.")
        first_line[path] = number
        shots[label].append(path)
    counts = {folder: len(paths) for folder, paths in zip(data.folders, shots, strict=True)}
    if few := {folder: count for folder, count in counts.items() if count < n_shot}:
        raise InputError(
            f"{where}: {name_few(few)} in the list, fewer than n_shot={n_shot}: add lines or set n_shot to "
            f"{min(few.values())} or less."
        )
    return [paths[:n_shot] for paths in shots]
