"""A reproduced table as Markdown, as an HTML page, and as JSON with the figure of every seed."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.atomic_files import partial_of_its_own, write_whole
from pipeline.errors import writing
from pipeline.html.charts import Axis, Chart, Series, chart
from pipeline.html.page import render
from training.evaluation.health import is_collapsed
from training.evaluation.page_facts import facts_of_writing
from training.reproduction.seeds import PairedDifference, SeedSummary, paired_difference, summarize_seeds
from training.reproduction.tables import PaperTable, TableRow

NOTHING = "–"


@dataclass(frozen=True)
class FilledRow:
    """A row, and what its seeds came to."""

    row: TableRow
    words: tuple[str, ...]  # chosen on validation
    commands: tuple[tuple[str, ...], ...]  # of the first seed: the CTR network, training, evaluation
    metrics: tuple[Mapping[str, Any], ...]  # by seed
    costs: tuple[Mapping[str, float], ...]  # by seed: wall_s, cpu_s; without the CTR network


class PageSection(NamedTuple):
    """A table of the page."""

    heading: str
    columns: list[str]
    rows: list[list[str]]


class FilledTable:
    """A table with its rows filled in."""

    def __init__(self, table: PaperTable, rows: Sequence[FilledRow], data: str) -> None:
        self.table, self.rows, self.data = table, list(rows), data

    def values_of(self, filled: FilledRow, column: int) -> list[float | None]:
        """Return a figure of every seed, in the column's unit."""
        return [self.table.columns[column].value_of(filled.row.system, metrics) for metrics in filled.metrics]

    def sections(self) -> list[PageSection]:
        """Return the tables of the page: figures, differences, runs."""
        found = [self._figures()]
        if self.table.relative:
            found.append(self._relative_gains())
        elif any(self._reference_of(filled) for filled in self.rows):
            found.append(self._differences())
        return [*found, self._runs()]

    def charts(self) -> list[Chart]:
        """Return a chart for each panel and column of a figure: the mean of each series, and a point for each seed."""
        places = [filled.row.place for filled in self.rows if filled.row.place]
        return [
            self._chart(panel, number)
            for panel in dict.fromkeys(place.panel for place in places)
            for number in range(len(self.table.columns))
        ]

    def _chart(self, panel: str, number: int) -> Chart:
        points: dict[str, list[tuple[float, list[float | None]]]] = {}
        for filled in self.rows:
            if filled.row.place and filled.row.place.panel == panel:
                of_series = points.setdefault(filled.row.place.series, [])
                of_series.append((filled.row.place.x, self.values_of(filled, number)))
        drawn = []
        for color, (name, of_series) in enumerate(points.items()):
            means = [summarize_seeds(values).mean for _, values in of_series]
            drawn.append(Series(name, [x for x, _ in of_series], [_or_nan(mean) for mean in means], color=color))
            seeds = [(x, _or_nan(value)) for x, values in of_series for value in values]
            drawn.append(Series("", [x for x, _ in seeds], [value for _, value in seeds], "points", color))
        title = self.table.columns[number].title
        axis = Axis(panel or "percent of the train split", log=self.table.log_x)
        described = f"{title} by {axis.label}: {', '.join(points)}; means of {len(self.rows[0].metrics)} seeds"
        return chart(f"{title} · {axis.label}", described, axis, Axis(title), drawn)

    def _reference_of(self, filled: FilledRow) -> FilledRow | None:
        """Return the row that `filled` is compared with: the reference, or that of its place in a figure."""
        reference, place = self.table.reference, filled.row.place
        for other in self.rows:
            if place is None and other.row.label == reference:
                return other
            if place and other.row.place and other.row.place == place._replace(series=reference):
                return other
        return None

    def notes(self) -> list[str]:
        """Return what is said below the figures."""
        totals = self.rows[0].metrics[0]
        counts = [f"{totals[f'num_{what}']:,} {what}" for what in ("impressions", "clicks", "conversions")]
        size = f"Test split of {self.data}: {', '.join(counts)}. Ours: mean ± standard deviation (n − 1) over seeds."
        paper = (
            f"Paper: {self.table.source}; its data is not this data, so compare the order and the differences of rows."
        )
        paired = (
            "p: paired t-test over seeds, two-sided, not corrected for the number of rows. Sampling rates and learning rates were "
            "chosen on validation with the first seed."
        )
        return [size, paper, paired, *self.table.notes]

    def commands(self) -> list[tuple[str, list[str]]]:
        """Return the commands of each row's first seed, as a user would type them."""
        return [
            (filled.row.label, [shlex.join(("python", "-m", *command)) for command in filled.commands])
            for filled in self.rows
        ]

    def as_json(self) -> dict[str, Any]:
        """Return every figure of every seed, and what the page says of them."""
        rows = []
        for filled in self.rows:
            figures = {}
            for number, column in enumerate(self.table.columns):
                values = self.values_of(filled, number)
                summary = summarize_seeds(values)
                figures[column.key_of(filled.row.system)] = {"values": values, "mean": summary.mean, "std": summary.std}
            rows.append(
                {
                    "system": filled.row.label,
                    "chosen": list(filled.words),
                    "figures": figures,
                    "collapsed": [is_collapsed(metrics) for metrics in filled.metrics],
                    "costs": [dict(cost) for cost in filled.costs],
                    "commands": [["python", "-m", *command] for command in filled.commands],
                }
            )
        return {"format_version": 1, "title": self.table.title, "source": self.table.source, "rows": rows}

    def _figures(self) -> PageSection:
        has_paper = bool(self.table.published)
        columns = ["system"]
        for column in self.table.columns:
            columns += [column.title, *(["paper"] if has_paper else [])]
        rows = []
        for filled in self.rows:
            published = self.table.published.get(filled.row.label)
            cells = [filled.row.label]
            for number, column in enumerate(self.table.columns):
                digits = column.decimals
                cells.append(summary_text(summarize_seeds(self.values_of(filled, number)), digits))
                if has_paper:
                    figure = published[number] if published else None
                    cells.append(_number_text(figure.value, figure.std, digits) if figure else NOTHING)
            rows.append(cells)
        return PageSection(self.table.title, columns, rows)

    def _differences(self) -> PageSection:
        rows = []
        for filled in self.rows:
            reference = self._reference_of(filled)
            if reference is not None and filled is not reference:
                cells = [filled.row.label]
                for number, column in enumerate(self.table.columns):
                    found = paired_difference(self.values_of(filled, number), self.values_of(reference, number))
                    paper = self._paper_difference(filled.row.label, number)
                    cells.append(difference_text(found, paper, column.decimals))
                rows.append(cells)
        titles = [column.title for column in self.table.columns]
        return PageSection(f"Difference from {self.table.reference}", ["system", *titles], rows)

    def _relative_gains(self) -> PageSection:
        """Return (row − reference) / reference in percent of each seed, its mean and p, beside the paper's."""
        rows = []
        others = [filled for filled in self.rows if self._reference_of(filled) not in (None, filled)]
        for filled, printed in zip(others, self.table.relative, strict=False):
            reference = self._reference_of(filled)
            assert reference is not None
            cells = [filled.row.label]
            for number, paper in enumerate(printed):
                pairs = zip(self.values_of(filled, number), self.values_of(reference, number), strict=True)
                gains = [100.0 * (one / other - 1.0) if one and other else None for one, other in pairs]
                found = paired_difference(gains, [0.0] * len(gains))
                cells.append(difference_text(found, paper, 2))
            rows.append(cells)
        titles = [column.title for column in self.table.columns]
        return PageSection(f"Gain over {self.table.reference}, percent", ["system", *titles], rows)

    def _paper_difference(self, label: str, number: int) -> float | None:
        published = self.table.published
        if label not in published or self.table.reference not in published:
            return None
        return published[label][number].value - published[self.table.reference][number].value

    def _runs(self) -> PageSection:
        rows = []
        for filled in self.rows:
            num_collapsed = sum(is_collapsed(metrics) for metrics in filled.metrics)
            costs = [sum(cost[name] for cost in filled.costs) / len(filled.costs) for name in ("wall_s", "cpu_s")]
            rows.append(
                [
                    filled.row.label,
                    f"{len(filled.metrics)}",
                    f"{num_collapsed}",
                    " ".join(filled.words) or NOTHING,
                    f"{costs[0]:,.0f}",
                    f"{costs[1]:,.0f}",
                    filled.row.system.equation,
                ]
            )
        columns = ["system", "runs", "collapsed", "chosen on validation", "wall s a run", "CPU s a run", "what it is"]
        return PageSection("Runs", columns, rows)


def summary_text(summary: SeedSummary, digits: int) -> str:
    """Format a mean and its deviation."""
    return NOTHING if summary.mean is None else _number_text(summary.mean, summary.std, digits)


def difference_text(found: PairedDifference, paper: float | None, digits: int) -> str:
    """Format a difference with its p, and the paper's."""
    if found.mean is None:
        return NOTHING
    test = "" if found.p is None else f" (p {found.p:.2g}{' *' if found.p < 0.05 else ''})"
    return f"{found.mean:+.{digits}f}{test}" + ("" if paper is None else f"; paper {paper:+.{digits}f}")


def markdown_of_table(filled: FilledTable) -> str:
    """Return the page as Markdown."""
    lines: list[str] = []
    for number, section in enumerate(filled.sections()):
        lines += [f"{'##' if number else '#'} {section.heading}", "", f"| {' | '.join(section.columns)} |"]
        lines += [f"|---|{'---:|' * (len(section.columns) - 1)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in section.rows]
        lines.append("")
        if number == 0:
            lines += [*(f"- {note}" for note in filled.notes()), ""]
    lines += ["## Commands of the first seed", ""]
    for label, commands in filled.commands():
        lines += [f"{label}:", "", *(f"    {command}" for command in commands), ""]
    return "\n".join(lines)


def write_table(filled: FilledTable, out: Path, name: str) -> list[Path]:
    """Write OUT/tables/NAME.md, .html and .json, and return their paths."""
    folder = out / "tables"
    first, *others = filled.sections()
    page = render(
        "reproduction.html.j2",
        first=first,
        others=others,
        charts=filled.charts(),
        facts=facts_of_writing(),
        notes=filled.notes(),
        commands=filled.commands(),
    )
    texts = {"md": markdown_of_table(filled), "html": page, "json": json.dumps(filled.as_json(), indent=1) + "\n"}
    written = []
    with writing(f"out={out}"):
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            path = folder / f"{name}.{ending}"
            write_whole(path, text, partial_of_its_own(path))  # the commands of an array may end together
            written.append(path)
    return written


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number_text(value: float, std: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
