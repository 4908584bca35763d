"""audit.html: the audit of a log, for people.

The page is a pure function of audit.json and the manifest, so every run of the same log and settings writes the same one,
but for the facts of the run itself at its head: path, date, versions, command.
This file and tables.py choose the numbers; pipeline/html/audit.html.j2 holds the words and the layout.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.audit import tables
from pipeline.audit.alerts import audit_alerts
from pipeline.audit.charts import context_charts, index_charts
from pipeline.audit.event_outcomes import impression_rows, join_matches
from pipeline.audit.tables import Audit
from pipeline.audit.tally import GRAIN
from pipeline.chunks.reasons import REASONS, rules_of
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import LABELS, SPLITS, Manifest
from pipeline.errors import printable
from pipeline.html.page import render


class FunnelCell(NamedTuple):
    """A count of one stage of the funnel in one split."""

    number: int
    rate: float | None  # of the stage before; None for impressions, and where that stage is empty
    bar: float  # length in percent of the impressions'


class FunnelStage(NamedTuple):
    """A row of the funnel."""

    name: str
    whole: str  # the stage that its rates are shares of, or ""
    cells: list[FunnelCell]


class BalanceRow(NamedTuple):
    """The lines of one table in one split: read = written + without_impressions + quarantined."""

    split: str
    grain: str
    read: int
    written: int
    without_impressions: int | None  # None for impressions
    quarantined: int


class ActionTable(NamedTuple):
    """The actions of an event log by kind and outcome; docs/events.md explains the outcomes."""

    outcomes: list[str]
    rows: list[tuple[str, list[tuple[int, str]]]]  # (kind of action, number and example of each outcome)

    @property
    def bars(self) -> list[tuple[str, list[tuple[str, float]]]]:
        """The share of each outcome in the actions of a kind."""
        found = []
        for kind, numbers in self.rows:
            total = sum(number for number, _ in numbers) or 1
            shares = [number / total for number, _ in numbers]
            found.append((kind, list(zip(self.outcomes, shares, strict=True))))
        return found


class ReasonRow(NamedTuple):
    """The number of lines that broke a rule: quarantined or kept, as the settings `checks` say."""

    reason: str
    rule: str
    quarantined: int
    kept: int


class ReasonExamples(NamedTuple):
    """The first lines of the log that were quarantined for one reason."""

    reason: str
    total: int
    lines: Sequence[Mapping[str, str | int]]  # source, offset, line


class ContextsRow(NamedTuple):
    """The sizes of the contexts of one split."""

    split: str
    contexts: int
    mean: float
    sizes: list[int]  # median, 90 %, 99 %, largest


def audit_page(audit: Audit, manifest: Manifest, of_run: Sequence[tuple[str, str]] = ()) -> str:
    """Render the page from audit.json and the manifest; `of_run` are facts of the job that wrote it, such as its date.

    All but `of_run`, at the head of the page, is the same for every run of the same log and settings.
    """
    splits = [split for split in SPLITS if split in manifest.totals]
    categorical = [field for field in manifest.fields if field.stored == INDEX]
    numeric = [field for field in manifest.fields if field.stored != INDEX]
    source = manifest.settings["source"]["name"]
    return render(
        "audit.html.j2",
        splits=splits,
        manifest=manifest,
        num_impressions=sum(total["impressions"] for total in manifest.totals.values()),
        bytes_read=sum(file.bytes for file in manifest.sources),
        facts=[*of_run, *manifest_facts(manifest)],
        alerts=audit_alerts(audit, manifest, splits),
        funnel=funnel_stages(audit, splits),
        balance=balance_rows(audit),
        events=audit.get("events"),  # source=events alone has it
        impressions=impression_rows(audit["events"]) if "events" in audit else [],
        joins=join_matches(audit["events"]) if "events" in audit else [],
        actions=action_table(audit),
        reasons=reason_rows(audit, source),
        left_out={
            name: sum(counts[name] for counts in audit["left_out"].values())
            for name in ("unknown_features", "repeated_values")
        },
        examples=examples(audit),
        contexts=context_rows(audit, splits),
        context_charts=context_charts(audit, splits),
        fields=tables.field_table(audit, manifest.fields, splits),
        numbers=tables.number_rows(audit, numeric, splits),
        leakage=tables.leakage_table(audit, manifest.fields),
        index_charts=index_charts(audit, tables.drifting(audit, categorical), splits),
        overlap=tables.overlap_rows(audit, splits),
    )


def manifest_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """List what identifies a dataset, wherever it is and whoever made it."""
    settings = manifest.settings
    sizes = f"{len(manifest.sources)} files, {sum(file.bytes for file in manifest.sources) / 1e6:,.1f} MB"
    rows = [
        ("source", f"{settings['source']['name']}: {sizes}"),
        ("labels", ", ".join(manifest.labels)),
        ("settings", manifest.settings_xxh3),
        ("manifest", manifest.xxh3),
        ("format", str(manifest.format_version)),
    ]
    return rows + ([("vocabularies extend", manifest.lineage[0])] if manifest.lineage else [])


def funnel_stages(audit: Audit, splits: Sequence[str]) -> list[FunnelStage]:
    """List impressions and the labels that the log has, with their rates: clicks of impressions, others of clicks."""
    present = set().union(*(audit["funnel"][split] for split in splits))
    names = [name for name in ("impressions", *(f"{label}s" for label in LABELS)) if name in present]
    whole_of = {name: "impressions" if name == "clicks" else "clicks" for name in names[1:]}

    def cell(name: str, total: Mapping[str, int]) -> FunnelCell:
        whole = total[whole_of[name]] if name in whole_of else 0
        bar = 100 * total[name] / max(total["impressions"], 1)
        return FunnelCell(total[name], total[name] / whole if whole else None, bar)

    return [
        FunnelStage(name, whole_of.get(name, ""), [cell(name, audit["funnel"][split]) for split in splits])
        for name in names
    ]


def balance_rows(audit: Audit) -> list[BalanceRow]:
    """List every split and table of which a line was read."""
    return [
        BalanceRow(
            split,
            grain,
            lines["read"],
            lines["written"],
            lines.get("without_impressions"),
            sum(lines["quarantined"].values()),
        )
        for split in SPLITS
        for grain in GRAIN.values()
        if (lines := audit["lines"][split][grain])["read"]
    ]


def action_table(audit: Audit) -> ActionTable | None:
    """Count the outcomes of each kind of action, attributed ones first; None for a log without actions."""
    actions = audit.get("events", {}).get("actions", {})
    counts, examples = actions.get("outcomes", {}), actions.get("examples", {})
    if not counts:
        return None
    seen = set().union(*counts.values())
    outcomes = sorted(seen, key=lambda outcome: (outcome != "attributed", outcome))
    return ActionTable(
        outcomes,
        [
            (
                kind,
                [
                    (
                        found.get(outcome, 0),
                        printable(examples.get(kind, {}).get(outcome, "")) * (outcome != "attributed"),
                    )
                    for outcome in outcomes
                ],
            )
            for kind, found in counts.items()
        ],
    )


def reason_rows(audit: Audit, source: str) -> list[ReasonRow]:
    """List the reasons that the log gave, in order of precedence, with the rules of its source."""
    rows = [
        ReasonRow(
            reason,
            rule,
            audit["quarantined"].get(reason, 0),
            sum(counts.get(reason, 0) for counts in audit["kept"].values()),
        )
        for reason, rule in rules_of(source).items()
    ]
    return [row for row in rows if row.quarantined or row.kept]


def examples(audit: Audit) -> list[ReasonExamples]:
    """List the first lines of each reason, in order of precedence."""
    return [
        ReasonExamples(reason, audit["quarantined"][reason], audit["examples"][reason])
        for reason in REASONS
        if reason in audit["examples"]
    ]


def context_rows(audit: Audit, splits: Sequence[str]) -> list[ContextsRow]:
    """List the number of contexts of each split, and the percentiles of their sizes."""
    return [
        ContextsRow(
            split, found["contexts"], found["mean"], [found["percentiles"][p] for p in ("50", "90", "99", "100")]
        )
        for split in splits
        if (found := audit["contexts"][split])
    ]
