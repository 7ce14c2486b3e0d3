"""Write the small pictures of "What you should see" in the notebooks, from executed ones.

    python -m workflow.scripts.expected FOLDER

FOLDER holds executed copies of the notebooks, run by papermill with their defaults. A code cell with the tag
``expected`` has such a picture, ``docs/assets/expected/<id of the cell>.webp``: the last one that the cell has drawn,
made small. Pictures of cells that no longer exist are deleted.
"""

import argparse
import io
import sys
from base64 import b64decode
from pathlib import Path

import nbformat
from PIL import Image

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.params import ROOT, resolve

TAG, PLACE = "expected", ROOT / "docs" / "assets" / "expected"
WIDTH, BYTES = 640, 40_000  # at most, of one picture
QUALITIES = (90, 80, 70, 60, 50)


def expected_cells(file):
    """The cells of a notebook that have the tag, ``{id: cell}``."""
    cells = nbformat.read(file, 4).cells
    return {cell.id: cell for cell in cells if TAG in cell.metadata.get("tags", ())}


def write_pictures(folder, place=PLACE):
    """Write a picture for every tagged cell of ``notebooks/``; returns the paths.

    InputError if no notebook in ``folder`` has drawn one of them; then nothing is written.
    """
    drawn = {}
    for file in sorted(resolve(folder).glob("*.ipynb")):
        for name, cell in expected_cells(file).items():
            pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            drawn |= {name: small_picture(b64decode(pictures[-1]))} if pictures else {}
    wanted = [name for file in sorted((ROOT / "notebooks").glob("*.ipynb")) for name in expected_cells(file)]
    for name in wanted:
        if name not in drawn:
            raise InputError(
                f"{resolve(folder)} has no notebook in which cell {name!r} has drawn a picture: run the notebooks with "
                "papermill into that folder first."
            )
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        if old.stem not in wanted:
            old.unlink()
    for name in wanted:
        with atomic_write(place / f"{name}.webp") as temporary:
            temporary.write_bytes(drawn[name])
    return [place / f"{name}.webp" for name in wanted]


def small_picture(png):
    """A picture (bytes of a png) as WebP, at most ``WIDTH`` pixels and ``BYTES``: less quality, then fewer pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    width = min(WIDTH, picture.width)
    while True:
        size = (width, round(picture.height * width / picture.width))
        resized = picture.resize(size, Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            resized.save(buffer, format="webp", quality=quality, method=6)
            if buffer.tell() <= BYTES:
                return buffer.getvalue()
        width = int(0.9 * width)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    try:
        paths = write_pictures(args.folder)
    except InputError as error:
        sys.exit(str(error))
    print(f"{len(paths)} pictures, {sum(path.stat().st_size for path in paths) // 1000} kB: {PLACE}")


if __name__ == "__main__":
    main()
