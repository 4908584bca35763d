"""The pictures of the documentation: as their script draws them, and every text inside its box in any font."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from fontTools.ttLib import TTFont

from docs.site.pictures import PICTURES

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
# DejaVu Sans is wider than the system fonts of most machines; a fallback may be a tenth wider still.
WIDER = 1.1
FONTS = {
    weight: TTFont(Path(matplotlib.get_data_path()) / "fonts/ttf" / file)
    for weight, file in {"400": "DejaVuSans.ttf", "700": "DejaVuSans-Bold.ttf"}.items()
}


def width(text: str, size: float, weight: str) -> float:
    font = FONTS[weight]
    glyphs, advances = font.getBestCmap(), font["hmtx"].metrics
    units = sum(advances[glyphs.get(ord(letter), ".notdef")][0] for letter in text)
    return WIDER * size * units / font["head"].unitsPerEm


def texts_outside(svg: str) -> list[str]:
    """List the texts that leave the smallest box, or the ground, in which they begin."""
    root = ET.fromstring(svg)
    boxes = [
        tuple(float(rect.get(name, 0)) for name in ("x", "y", "width", "height")) for rect in root.iter(f"{SVG}rect")
    ]
    found = []
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        length = width(text.text or "", float(text.get("font-size", 13)), text.get("font-weight", "400"))
        start = x - length / 2 if text.get("text-anchor") == "middle" else x
        around = [box for box in boxes if box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]]
        left, top, wide, high = min(around, key=lambda box: box[2] * box[3])
        if start < left or start + length > left + wide - 4 or y + 4 > top + high:
            found.append(text.text or "")
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_script_draws_and_its_text_stays_inside(name: str) -> None:
    svg = (DOCS / name).read_text()
    assert svg == PICTURES[name](), "run python -m docs.site.pictures"
    assert texts_outside(svg) == []


def test_every_picture_of_the_pages_is_drawn_by_the_script() -> None:
    assert {path.name for path in DOCS.glob("*.svg")} == set(PICTURES)


def test_a_text_that_is_too_wide_is_found() -> None:
    wide = re.sub(r">raw logs<", ">raw logs of many days and many shops<", PICTURES["road.svg"]())
    assert texts_outside(wide) == ["raw logs of many days and many shops"]
