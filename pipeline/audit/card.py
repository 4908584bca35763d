"""The card of a dataset, which jobs.inspect prints: from its manifest, and from its audit if that is its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audit.summary import quarantined_line
from pipeline.dataset.kinds import NUMBER, STORED_KINDS, VECTOR
from pipeline.dataset.manifest import LABELS, SPLITS, Manifest, ManifestField
from pipeline.errors import printable
from pipeline.storage.commit import AUDIT, audit_figures, read_audit
from pipeline.storage.store import store_of

_NONE = "–"


def card(dataset: str, manifest: Manifest) -> str:
    """Describe the origin, splits, labels and fields of a dataset."""
    store = store_of(dataset)
    audit, doubt = read_audit(store)
    if not audit and not doubt:
        doubt = (
            f"{store.location} has no {AUDIT}, so what the log looked like is not shown; overwrite=true with the job that "
            "made the dataset writes it anew."
        )
    splits = [split for split in SPLITS if split in manifest.totals]
    with audit_figures(store):
        fields = _fields(manifest, audit, splits)
    parts = [
        _origin(dataset, manifest),
        _splits(manifest, splits),
        _labels(manifest),
        fields,
        quarantined_line(manifest),
    ]
    return "\n\n".join([*parts, *([f"warning: {printable(doubt)}"] if doubt else [])])


def _origin(dataset: str, manifest: Manifest) -> str:
    size = sum(source.bytes for source in manifest.sources)
    names = [printable(source.name) for source in manifest.sources]
    source = manifest.settings.get("source")
    kind = source.get("name") if isinstance(source, dict) else "unknown"
    named = ", ".join(names[:4]) + (f", … ({len(names)} files)" if len(names) > 4 else "")
    lines = [
        printable(dataset),
        f"  source={printable(str(kind))}: {size / 1e6:,.1f} MB in {named}",
        f"  settings {printable(manifest.settings_xxh3)}, format {manifest.format_version}",
    ]
    if manifest.lineage:
        lines.append(f"  vocabulary.base: manifest {' ← '.join(manifest.lineage)}")
    return "\n".join(lines)


def _splits(manifest: Manifest, splits: Sequence[str]) -> str:
    labels = [f"{label}s" for label in LABELS if f"{label}s" in manifest.totals[splits[0]]] if splits else []
    rows = [["split", "rows", "impressions", *labels, "files", "row groups", "MB", "bytes an impression"]]
    for split in splits:
        total, files = manifest.totals[split], manifest.files_of(split)
        size, impressions = sum(file.bytes for file in files), total["impressions"]
        counts = [f"{total['rows']:,}", f"{impressions:,}", *(_rate(total, name) for name in labels)]
        groups = sum(len(file.row_groups) for file in files)
        rows.append(
            [split, *counts, f"{len(files):,}", f"{groups:,}", f"{size / 1e6:,.1f}", f"{size / impressions:.1f}"]
        )
    return _aligned(rows)


def _rate(total: Mapping[str, int], name: str) -> str:
    """Write a count with its rate: clicks of impressions, everything else of clicks."""
    whole = total["impressions" if name == "clicks" else "clicks"]
    return f"{total[name]:,} ({100 * total[name] / whole:.3g} %)" if whole else f"{total[name]:,}"


def _labels(manifest: Manifest) -> str:
    known = [label for label in LABELS if label in manifest.labels]
    return "\n".join(f"{label}: {printable(manifest.labels[label])}" for label in known)


def _fields(manifest: Manifest, audit: Mapping[str, Any], splits: Sequence[str]) -> str:
    rows = [["field", "raw id", "of each", "values", "table", *(f"unknown, {split}" for split in splits)]]
    for field in manifest.fields:
        unknown = [_unknown(audit.get("fields", {}).get(field.name, {}).get(split, {})) for split in splits]
        rows.append(
            [field.name, printable(field.raw_id), field.scope, _shape_text(field), _table_text(field), *unknown]
        )
    return _aligned(rows)


def _shape_text(field: ManifestField) -> str:
    if field.stored == VECTOR:
        return f"a vector of {field.num_inputs}"
    if STORED_KINDS[field.kind].of_number:
        return "a number"
    return field.arity + (", weighted" if field.weighted else "")


def _table_text(field: ManifestField) -> str:
    if field.stored == VECTOR:
        return "as it is" if field.mean is None else "standardized"
    if field.stored == NUMBER:
        return f"µ {field.mean:.4g}, σ {field.std:.4g}" if field.mean is not None and field.std is not None else _NONE
    of = "hashed" if field.hash_buckets else STORED_KINDS[field.kind].table
    return f"{field.num_rows:,} rows" + (f", {of}" if of else "")


def _unknown(found: Mapping[str, int]) -> str:
    """Write the share of values that are out of vocabulary."""
    if not found.get("values") or "out_of_vocabulary" not in found:
        return _NONE
    return f"{100 * found['out_of_vocabulary'] / found['values']:.2f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align columns as wide as their widest cell: those of numbers to the right, others to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [all(cell[:1].isdigit() or cell == _NONE for cell in column[1:]) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, is_number, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, rows))
