"""schema.json: what a request may have, how its ids are written, what comes back, and from which run it all is."""

from collections.abc import Mapping
from typing import Any

from pipeline.dataset.kinds import INDEX, NUMBER, STORED_KINDS
from pipeline.dataset.manifest import ManifestField
from training.export.trace import inputs_of
from training.serving.scorer import Scorer
from training.serving.values import IdRule

EXPORT_VERSION = 1


def schema_of_export(
    scorer: Scorer,
    files: Mapping[str, str],
    vocabularies: Mapping[str, Mapping[str, str]],
    tables: str,
    calibrator: str | None,
) -> dict[str, Any]:
    """Return the content of schema.json; `files` maps a format to its file, `vocabularies` a field to its files."""
    rule = IdRule.of(scorer.manifest)
    outputs = {name: str(query) for name, query in scorer.network.graph.outputs.items()}
    fields = [
        {
            "name": entry.name,
            "scope": "context" if entry.scope == "context" else "candidate",
            "form": form_of(entry),
            "many": entry.arity == "many",
            "weighted": entry.weighted,
            **_form_settings(scorer, entry, vocabularies),
        }
        for entry in scorer.manifest.fields
    ]
    return {
        "export_version": EXPORT_VERSION,
        "source": {
            "run": scorer.run.resolve().name,
            "checkpoint": scorer.checkpoint.path.name,
            "step": scorer.step,
            "manifest_xxh3": scorer.manifest.xxh3,
        },
        "files": dict(files),
        "tables": tables,
        "calibrator": calibrator,
        "inputs": inputs_of(scorer.network),
        "outputs": outputs,
        "ids": {"texts": rule.has_texts, "nulls": sorted(rule.nulls)},
        "fields": fields,
    }


def form_of(entry: ManifestField) -> str:
    """Return what a request has of a field: id, bucket (a number with a table of buckets), number or vector."""
    if entry.stored != INDEX:
        return "number" if entry.stored == NUMBER else "vector"
    return "bucket" if STORED_KINDS[entry.kind].of_number else "id"


def _form_settings(
    scorer: Scorer, entry: ManifestField, vocabularies: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    form = form_of(entry)
    if form == "bucket":
        return {"rows": entry.num_rows, "boundaries": list(entry.parameters["boundaries"])}
    if form == "id":
        found = {
            "rows": entry.num_rows,
            "hash_buckets": entry.hash_buckets,
            "vocabulary": dict(vocabularies.get(entry.name, {})),
        }
        return found | ({"pooling": scorer.network.pooling[entry.name]} if entry.arity == "many" else {})
    moments = {"mean": entry.mean, "std": entry.std}  # the graph applies them
    return moments | ({"width": entry.num_inputs} if form == "vector" else {})
