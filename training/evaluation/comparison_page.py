"""Write a comparison as Markdown and as an HTML page without scripts or outside resources."""

from pathlib import Path

from pipeline.atomic_files import write_whole
from pipeline.errors import writing
from pipeline.html.page import render
from training.evaluation.comparison import Comparison, cell_text, collapsed_text, markdown_of, provenance_text
from training.evaluation.page_facts import facts_of_writing

_NOTE = (
    "{impressions:,} impressions, {users:,} users. Differences are from {first}, with a 95 % interval and p (two-sided, paired "
    "by users, not corrected for how many are looked at; * below 0.05); those of calibration are quotients. They tell these "
    "trained models apart, and say nothing of other seeds."
)


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write `out`.md and `out`.html, and return their paths."""
    results = comparison.results
    page = render(
        "compare.html.j2",
        facts=facts_of_writing(),
        names=[one.name for one in results],
        rows=[(name, [cell_text(cell) for cell in cells]) for name, cells in comparison.rows],
        note=_NOTE.format(impressions=results[0].rows[0], users=results[0].num_users, first=results[0].name),
        collapsed=collapsed_text(results),
        runs=[(one.name, provenance_text(one), one.alerts) for one in results],
    )
    written = [out.with_name(f"{out.name}.md"), out.with_name(f"{out.name}.html")]
    with writing(f"The comparison out={out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(written, (markdown_of(comparison), page), strict=True):
            write_whole(path, text)
    return written
