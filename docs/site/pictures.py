"""Draw the pictures of the documentation: python -m docs.site.pictures

A picture is plain SVG on a white ground, so that it reads the same on a light and on a dark page. Boxes are wide enough for
their text in DejaVu Sans and in fonts a tenth wider; tests/docs/test_pictures.py measures it.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1]
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
INK, SOFT = "#1d2733", "#5b6675"
#: Fill and border of a box.
GREY, ORANGE, GREEN, BLUE, VIOLET, RED, WHITE = (
    ("#f3f5f8", "#9aa6b5"),
    ("#fff4e3", "#d69a3c"),
    ("#eaf5ec", "#5aa06a"),
    ("#e9f1fb", "#4f84c4"),
    ("#f2ecfa", "#8b68bd"),
    ("#fdecec", "#c85a5a"),
    ("#ffffff", "#c8d0da"),
)


class Box(NamedTuple):
    """A rounded box with a title and lines of text; lines that begin with ~ are set in a softer colour."""

    x: int
    y: int
    width: int
    height: int
    color: tuple[str, str]
    title: str
    lines: tuple[str, ...] = ()


def box(shown: Box) -> str:
    """Draw a box with its text."""
    fill, border = shown.color
    parts = [
        f'<rect x="{shown.x}" y="{shown.y}" width="{shown.width}" height="{shown.height}" rx="8" fill="{fill}" '
        f'stroke="{border}" stroke-width="1.4"/>'
    ]
    y = shown.y + 25
    if shown.title:
        parts.append(f'<text x="{shown.x + 14}" y="{y}" font-weight="700" font-size="14">{shown.title}</text>')
        y += 25
    for line in shown.lines:
        color = f' fill="{SOFT}"' if line.startswith("~") else ""
        parts.append(f'<text x="{shown.x + 14}" y="{y}"{color}>{line.lstrip("~")}</text>')
        y += 21
    return "\n ".join(parts)


def arrow(path: str) -> str:
    """Draw a path with a tip."""
    return f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.6" marker-end="url(#tip)"/>'


def label(x: int, y: int, text: str, anchor: str = "start", soft: bool = True) -> str:
    """Write a text that belongs to no box."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{SOFT if soft else INK}">{text}</text>'


def picture(width: int, height: int, title: str, description: str, *parts: str) -> str:
    """Put the parts into one SVG file."""
    body = "\n ".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="{FONT}" role="img" aria-labelledby="title desc">
<title id="title">{title}</title>
<desc id="desc">{description}</desc>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>
<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>
<g font-size="13" fill="{INK}">
 {body}
</g>
</svg>
"""


def road() -> str:
    """Draw the stages from raw logs to an evaluated model."""
    return picture(
        1100,
        410,
        "From raw logs to an evaluated model",
        "Raw skeleton and common-feature logs pass through Spark into one Parquet row per context; Petastorm streams row "
        "groups to the ranks of torchrun, which look up, multiply and train; evaluation writes metrics, predictions and a report.",
        box(Box(20, 30, 230, 140, GREY, "raw logs", ("sample_skeleton", "common_features", "actions (optional)", "~text, gzip, parts"))),
        arrow("M250 100H288"),
        box(Box(290, 30, 340, 140, ORANGE, "Spark · jobs.preprocess", ("byte ranges → one parse kernel", "vocabularies of the train split", "raw id → row of a table", "impressions under their context"))),
        arrow("M630 100H668"),
        box(Box(670, 30, 340, 140, GREEN, "dataset", ("one Parquet row = one context", "and its impressions, as lists", "every value, every weight", "quarantine, audit, manifest last"))),
        arrow("M1010 100H1050V205H145V248"),
        box(Box(20, 250, 340, 140, BLUE, "Petastorm · plan, feed", ("which rank reads which row group", "at which step: arithmetic", "a batch: C contexts, B impressions", "~checked once, as it is read"))),
        arrow("M360 320H388"),
        box(Box(390, 250, 360, 140, VIOLET, "torchrun · jobs.train", ("embeddings: once per context", "first layer: W·[u; i] = Wᵤu + Wᵢi", "losses over all impressions", "~TorchRec tables, one sum of gradients"))),
        arrow("M750 320H788"),
        box(Box(790, 250, 290, 140, GREY, "jobs.evaluate", ("exact AUC, GAUC, log loss", "calibration with intervals", "predictions as Parquet", "report.html"))),
    )  # fmt: skip


def context() -> str:
    """Draw a page view, and the Parquet row that it becomes."""
    items = [
        box(Box(40 + 125 * place, 140, 112, 82, WHITE, f"item {item}", (text,)))
        for place, (item, text) in enumerate([(1042, "clicked"), (1017, "–"), (1005, "–")])
    ]
    return picture(
        1000,
        270,
        "A context and its impressions",
        "A page view shows three items to user 11. The user and her behaviour are the context; each item that is shown is an "
        "impression. The dataset keeps the context once, with the impressions as lists.",
        box(Box(20, 20, 405, 230, BLUE, "a page view = one context", ("user 11, age 3, brands seen: 55, 56, 71, …", "shown to her, an impression each:"))),
        *items,
        arrow("M425 135H478"),
        box(Box(480, 20, 240, 230, GREEN, "one Parquet row", ("user_id", "user_age", "user_brands", "item_id", "click", "conversion", "~518 values once, for 58"))),
        box(Box(740, 20, 240, 230, WHITE, "its values", ("11", "3", "[55, 56, 71, …]", "[1042, 1017, 1005]", "[1, 0, 0]", "[0, 0, 0]", "~impressions on average"))),
    )  # fmt: skip


def funnel() -> str:
    """Draw the graph of ESM² as a funnel."""
    return picture(
        1000,
        300,
        "The funnel",
        "Of all impressions some are clicked; of those some are followed by a daction such as a cart; a conversion comes after "
        "a daction or without one.",
        box(Box(20, 100, 190, 100, GREY, "impression", ("an item was shown", "label: none"))),
        arrow("M210 150H298"),
        label(254, 138, "pCTR", "middle"),
        box(Box(300, 100, 190, 100, BLUE, "click", ("of an impression", "label: click"))),
        arrow("M490 130C530 80 530 70 568 66"),
        box(Box(570, 20, 190, 100, ORANGE, "daction", ("cart or wish", "label: daction"))),
        arrow("M490 170C530 220 530 232 568 236"),
        box(Box(570, 186, 190, 100, WHITE, "no daction", ("the other clicks", "~oaction in ESM²"))),
        arrow("M760 70C790 80 790 130 808 138"),
        arrow("M760 236C790 226 790 178 808 164"),
        box(Box(810, 100, 175, 100, GREEN, "conversion", ("a purchase", "label: conversion"))),
        label(20, 260, "pCVR = P(conversion | click)"),
        label(20, 282, "pCTCVR = pCTR · pCVR"),
    )


def splits() -> str:
    """Draw the splits of an event log on a line of time."""
    return picture(
        1000,
        230,
        "Splits by time",
        "Impressions until t1 are train, until t2 validation, until t3 test. The actions log has to reach one attribution "
        "window further. Impressions whose window is still open are left out.",
        box(Box(20, 50, 430, 70, GREEN, "train", ("the model learns from these",))),
        box(Box(455, 50, 170, 70, BLUE, "validation", ("choose settings",))),
        box(Box(630, 50, 170, 70, VIOLET, "test", ("report figures",))),
        box(Box(805, 50, 180, 70, GREY, "window open", ("~immature: left out",))),
        *[label(x, 40, text, "middle", soft=False) for x, text in ((22, "t0"), (452, "t1"), (627, "t2"), (802, "t3"))],
        arrow("M20 145H980"),
        label(20, 170, "time of the impression"),
        arrow("M640 190H975"),
        label(640, 214, "attribution windows end here at the latest"),
    )


def entire_space() -> str:
    """Draw the space in which CVR is used beside the one in which it is usually learned."""
    return picture(
        1000,
        310,
        "Why the entire space",
        "CVR is used on all impressions. A model that learns it from clicked impressions alone never sees the others. ESMM "
        "learns pCTR and pCTCVR over all impressions, and pCVR is the factor between them.",
        box(Box(20, 40, 460, 250, GREY, "all impressions: where the ranking asks for pCVR", ())),
        box(Box(50, 90, 330, 180, ORANGE, "clicked: what BASE learns from", ())),
        box(Box(80, 135, 200, 110, GREEN, "converted", ("the positives",))),
        box(Box(520, 40, 460, 118, RED, "learned on clicks alone", ("sample selection bias: rows of one kind,", "used on rows of another", "data sparsity: few rows to learn from"))),
        box(Box(520, 172, 460, 118, BLUE, "ESMM: the entire space", ("pCTR    learned on all impressions", "pCTCVR = pCTR · pCVR    on all impressions", "pCVR    the factor between them"))),
    )  # fmt: skip


def badges() -> str:
    """Draw what pyproject.toml says of the release: its version, Pythons and license."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    pythons = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    facts = (("version", project["version"]), ("Python", ", ".join(pythons)), ("license", project["license"]["text"]))
    parts, x = [], 0
    for name, value in facts:
        left, right = 10 * len(name) + 20, 10 * len(value) + 20
        parts.append(
            f'<rect x="{x}" width="{left}" height="24" fill="{SOFT}"/><rect x="{x + left}" width="{right}" height="24" fill="#2f6fb5"/>'
        )
        parts.append(
            f'<text x="{x + 10}" y="17" fill="#fff">{name}</text><text x="{x + left + 10}" y="17" fill="#fff">{value}</text>'
        )
        x += left + right + 10
    return picture(x - 10, 24, "Facts of this release", "; ".join(f"{name} {value}" for name, value in facts), *parts)


PICTURES: dict[str, Callable[[], str]] = {
    "badges.svg": badges,
    "road.svg": road,
    "concepts-context.svg": context,
    "concepts-funnel.svg": funnel,
    "concepts-splits.svg": splits,
    "concepts-entire-space.svg": entire_space,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw())
