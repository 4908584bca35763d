"""audit.html: what was in a log, for people; a pure function of audit.json and the manifest, so it is the same in every run."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from pipeline.audit import tables
from pipeline.audit.charts import context_figures, index_figures
from pipeline.audit.leakage import sentences
from pipeline.audit.tables import Audit
from pipeline.audit.tally import GRAIN
from pipeline.dataset.kinds import INDEX, NUMBER
from pipeline.dataset.manifest import LABELS, SPLITS, Manifest
from pipeline.html.frame import details, note, page, pair, percent, section, table

MEANING = {
    "malformed_line": "not the columns that the table has",
    "bad_label": "click or buy is neither 0 nor 1",
    "bad_context_key": "the key of the context is none",
    "bad_feature": "a feature cannot be read",
    "feature_count_mismatch": "the line has another number of features than it says",
    "conversion_without_click": "bought, but not clicked",
    "missing_context": "an impression whose context has no line",
    "duplicate_impression": "the impression was there before",
    "duplicate_context": "the context was there before",
}


def audit_page(audit: Audit, manifest: Manifest) -> str:
    """The page; nothing in it comes from another place than these two."""
    splits = [split for split in SPLITS if split in manifest.totals]
    categorical = [field for field in manifest.fields if field.stored == INDEX]
    numeric = [field for field in manifest.fields if field.stored == NUMBER]
    sections = [
        pair(section("Funnel", _funnel(audit, splits)), section("Every line is accounted for", _balance(audit))),
        pair(section("Lines set aside", _rejects(audit)), section("The first of each reason", _examples(audit))),
        section("Impressions of a context", *_contexts(audit, splits)),
        pair(
            section("Values of a field", tables.values(audit, manifest.fields, splits)),
            section("Out of vocabulary", tables.coverage(audit, categorical, splits)),
        ),
        *([section("Numbers", tables.numbers(audit, numeric, splits))] if numeric else []),
        pair(
            section("What a field alone tells of a label", tables.leakage(audit, manifest.fields)),
            section("Drift", tables.drift(audit, categorical, splits)),
        ),
        section("What drifts most", index_figures(audit, tables.drifting(audit, categorical), splits)),
        section("Users and contexts in two splits", tables.overlap(audit, splits, manifest)),
    ]
    warned = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(audit["leakage"]))
    if warned:
        sections.insert(0, f'<section class="warning"><h2>A field that tells too much</h2>{warned}</section>')
    impressions = sum(total["impressions"] for total in manifest.totals.values())
    size = sum(source.bytes for source in manifest.sources)
    subtitle = (
        f"{impressions:,} impressions from {len(manifest.sources)} files of {size / 1e6:,.1f} MB · "
        f"settings {manifest.settings_xxh3} · manifest {manifest.xxh3}"
    )
    return page("Audit", "audit", subtitle, sections)


def visible(text: str) -> str:
    """Text of a log as HTML: whatever does not show, or would reorder or hide other text, by its number."""
    return "".join(
        escape(character) if character.isprintable() else f"<b>{escape(ascii(character)[1:-1])}</b>"
        for character in text
    )


def _funnel(audit: Audit, splits: Sequence[str]) -> str:
    present = set().union(*(audit["funnel"][split] for split in splits))
    stages = [name for name in ("impressions", *(f"{label}s" for label in LABELS)) if name in present]

    whole = {name: "impressions" if name == "clicks" else "clicks" for name in stages[1:]}

    def cell(name: str, total: Mapping[str, int]) -> str:
        of = total[whole[name]] if name in whole else 0
        # By logarithm: on real logs one conversion faces five thousand impressions.
        width = 100 * math.log1p(total[name]) / math.log1p(total["impressions"])
        rate = f"<small>{percent(total[name] / of, 4)}</small>" if of else ""
        return f'{total[name]:,}{rate}<i style="width:{width:.1f}%"></i>'

    def title(name: str) -> str:
        return f"{name}<small>of {whole[name]}</small>" if name in whole else name

    rows = [[title(name), *(cell(name, audit["funnel"][split]) for split in splits)] for name in stages]
    return table(["", *splits], rows) + note("The bars are on a logarithmic scale.")


def _balance(audit: Audit) -> str:
    rows = []
    for split in SPLITS:
        for grain in GRAIN.values():
            lines = audit["lines"][split][grain]
            aside = sum(lines["quarantined"].values())
            if lines["read"]:
                alone = f"{lines['without_impressions']:,}" if "without_impressions" in lines else tables.NONE
                counts = [f"{lines['read']:,}", f"{lines['written']:,}", alone, f"{aside:,}"]
                rows.append([f"{split} {grain}", *counts])
    shown = table(["", "lines read", "= written", "+ without impressions", "+ set aside"], rows)
    return shown + note(
        "The job stops where a sum does not hold. A line without a readable key counts for train or test after its file."
        + _of_events(audit)
    )


def _of_events(audit: Audit) -> str:
    if "events" not in audit:
        return ""
    impressions = audit["events"]["impressions"]
    immature = sum(impressions["immature"].values())
    return (
        f" Of {impressions['read']:,} rows read, {impressions['outside_split']:,} lie outside the splits, and "
        f"{immature:,} are too young for their labels to be known; neither are in these sums."
    )


def _rejects(audit: Audit) -> str:
    rows = []
    for reason, meaning in MEANING.items():
        aside = audit["quarantined"].get(reason, 0)
        kept = sum(counts.get(reason, 0) for counts in audit["kept"].values())
        if aside or kept:
            counts = [f"{number:,}" if number else tables.NONE for number in (aside, kept)]
            rows.append([f"{reason}<small>{meaning}</small>", *counts])
    names = ("unknown_features", "repeated_values")
    unknown, repeated = (sum(counts[name] for counts in audit["left_out"].values()) for name in names)
    shown = (
        table(["", "set aside", "kept all the same"], rows) if rows else "<p>None, and no defect was overlooked.</p>"
    )
    return shown + note(
        f"Left out of lines that were kept: {unknown:,} features of fields that the catalogue does not name, and "
        f"{repeated:,} further values of fields of arity one."
    )


def _examples(audit: Audit) -> str:
    """The beginnings of the first lines of the log with each defect."""
    shown = []
    for reason in (reason for reason in MEANING if reason in audit["examples"]):
        found = audit["examples"][reason]
        lines = "".join(
            f"<p><b>{visible(line['source'])}, byte {line['offset']:,}</b><br>"
            f"<code>{visible(line['line']) or '(an empty line)'}</code></p>"
            for line in found
        )
        shown.append(details(f"{reason}: {len(found)} of {audit['quarantined'][reason]:,}", lines))
    return "".join(shown) + note("Whole lines stand in quarantine/, each with its file, offset and reason.")


def _contexts(audit: Audit, splits: Sequence[str]) -> list[str]:
    rows = []
    for split in splits:
        found = audit["contexts"][split]
        sizes = [f"{found['percentiles'][p]:,}" for p in ("50", "90", "99", "100")]
        rows.append([split, f"{found['contexts']:,}", f"{found['mean']:.1f}", *sizes])
    head = ["", "contexts", "mean", "median", "90 %", "99 %", "most"]
    return [table(head, rows), context_figures(audit, splits)]
