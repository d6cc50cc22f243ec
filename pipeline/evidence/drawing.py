"""Evidence over the picture: soft cells, of one colour for the class and of another against it."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.evidence.attribution import Evidence
from pipeline.inputs.decode import Pixels

FOR, AGAINST = (0, 114, 178), (213, 94, 0)  # blue and vermilion, told apart by the colour-blind (Okabe and Ito, 2008)
_SIDE = 448  # pixels of the picture
_LINE = 20
_STRONGEST = 0.65  # opacity of the strongest cell


def shade(view: Pixels, evidence: Evidence) -> Image.Image:
    """The view (S, S, 3) that the backbone saw, grey, with its cells in colour.

    The scale is that of the strongest cell of this picture. Cells are smoothed, since a cell sees more than its place.
    """
    cells = evidence.cells.numpy()
    reach = np.abs(cells).max() or 1.0
    picture = Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    shade = Image.fromarray((cells / reach).astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(shade), -1, 1)
    opacity = _STRONGEST * np.abs(strength)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    colour = np.where(strength[..., None] > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    blended = grey * (1 - opacity) + colour * opacity
    return Image.fromarray(blended.astype(np.uint8))


def draw(view: Pixels, evidence: Evidence, label: str, against: str, answer: str = "") -> Image.Image:
    """The shaded view, and below it the names of the two classes, the sum of the cells, and what there is of `answer`:
    a line on whether the model answers."""
    picture = shade(view, evidence)
    lines = [
        f"{label} rather than {against}",
        f"{evidence.total:.2f} = cells {float(evidence.cells.sum()):.2f}, constant {evidence.constant:.2f}",
        f"strongest cell {float(evidence.cells.abs().max()):.2f}; blue: for, orange: against",
        *([answer] if answer else []),
    ]
    page = Image.new("RGB", (picture.width, picture.height + _LINE * len(lines) + 8), "white")
    page.paste(picture)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for number, line in enumerate(lines):
        pen.text((6, picture.height + 4 + _LINE * number), line, fill="black", font=font)
    return page


def as_png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
