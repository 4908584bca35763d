"""What must hold inside a manifest, whoever wrote it: ranges, names, and sums that agree with each other."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.dataset.kinds import BUCKETIZED, INDEX, NUMBER, STORED_KINDS, VECTOR
from pipeline.dataset.manifest import (
    ARITIES,
    LABELS,
    NUM_RESERVED_ROWS,
    REMEDY,
    SCOPES,
    SPLITS,
    DatasetFile,
    Manifest,
    ManifestField,
    RowGroup,
    totals_of,
)
from pipeline.dataset.named_files import inner_name
from pipeline.errors import InputError, printable

#: No count or size is larger: the sums of a million of them are int64.
_MOST = 2**43
_MOST_TABLE_ROWS = 2**31 - 1  # an index is an int32
_XXH3 = re.compile(r"[0-9a-f]{16}\Z")
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def check_kinds(raw: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a field has a kind of another release, whatever else is new about it."""
    fields = raw.get("fields")
    for entry in fields if isinstance(fields, list) else ():
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind not in STORED_KINDS:
            raise InputError(
                f"{where} has the field {printable(str(entry.get('name')))} of kind={printable(kind)}, and this release knows "
                f"{', '.join(STORED_KINDS)}; use the release that wrote the dataset, or preprocess the source again with "
                "this one."
            )


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raise InputError, of the first value that cannot be, unless all of `manifest` holds together."""
    try:
        _check_header(manifest)
        for entry in manifest.fields:
            _check_field(entry, where)
        _check_unique((entry.name for entry in manifest.fields), "the field")
        for file in manifest.files:
            _check_file(file, "daction" in manifest.labels, where)
        _check_unique((file.path for file in manifest.files), "the file")
        if (found := totals_of(manifest.files)) != manifest.totals:
            raise _Contradiction(f"its totals are {manifest.totals}, and its files sum to {found}")
        _check_audit(manifest.audit, where)
    except _Contradiction as error:
        raise InputError(f"{where} is damaged: {printable(str(error))}; {REMEDY}") from error


class _Contradiction(ValueError):
    """What cannot be, for the message."""


def _check_header(manifest: Manifest) -> None:
    for source in manifest.sources:
        if not source.name or not 0 <= source.bytes <= _MOST:
            raise _Contradiction(f"the source {source.name!r} has {source.bytes} bytes")
    for xxh3 in manifest.lineage:
        _check_xxh3(xxh3, "lineage")
    if wrong := sorted(set(manifest.labels) - set(LABELS)):
        raise _Contradiction(f"it has the label {wrong[0]!r}, and labels are {', '.join(LABELS)}")
    for label in ("click", "conversion") if manifest.files else ():
        if label not in manifest.labels:
            raise _Contradiction(f"it has no label {label}")


def _check_field(entry: ManifestField, where: str) -> None:
    what = f"the field {entry.name!r}"
    if not _FIELD_NAME.match(entry.name):
        raise _Contradiction(f"{what} has a name of other signs than lower-case letters, digits and underscores")
    if entry.scope not in SCOPES or entry.arity not in ARITIES:
        raise _Contradiction(f"{what} has scope={entry.scope!r} and arity={entry.arity!r}")
    if entry.weighted and (entry.arity == "one" or entry.stored != INDEX):
        raise _Contradiction(f"{what} is weighted, and only indices of arity many are")
    width = entry.parameters.get("width")
    if entry.stored == VECTOR and (type(width) is not int or not 1 <= width <= _MOST_TABLE_ROWS):
        raise _Contradiction(f"{what} of kind={entry.kind} has width={width}, which is no width")
    least = NUM_RESERVED_ROWS if entry.stored == INDEX else 0
    most = _MOST_TABLE_ROWS if entry.stored == INDEX else 0
    if entry.hash_buckets:
        least = most = entry.hash_buckets + NUM_RESERVED_ROWS
    if entry.kind == BUCKETIZED:
        least = most = len(_boundaries(entry, what)) + 1 + NUM_RESERVED_ROWS
    if not least <= entry.num_rows <= min(most, _MOST_TABLE_ROWS) or entry.hash_buckets < 0:
        raise _Contradiction(
            f"{what} of kind={entry.kind} with hash_buckets={entry.hash_buckets} has num_rows={entry.num_rows}"
        )
    _check_scaling(entry, what)
    if entry.vocabulary:
        inner_name(entry.vocabulary, where, REMEDY)
        _check_xxh3(entry.vocabulary_xxh3, what)


def _check_scaling(entry: ManifestField, what: str) -> None:
    """Check that only numbers have a mean and a standard deviation, and vectors one of each place."""
    mean, std = entry.mean, entry.std
    is_same = (mean is None) == (std is None) and isinstance(mean, tuple) == isinstance(std, tuple)
    if isinstance(mean, tuple) and isinstance(std, tuple):
        is_possible = is_same and entry.stored == VECTOR and len(mean) == len(std) == entry.num_inputs and min(std) >= 0
    else:
        is_possible = (
            is_same and (mean is None or entry.stored == NUMBER) and (not isinstance(std, float | int) or std >= 0)
        )
    if not is_possible:
        raise _Contradiction(f"{what} of kind={entry.kind} has mean={mean} and std={std}")


def _boundaries(entry: ManifestField, what: str) -> list[float]:
    found = entry.parameters.get("boundaries")
    if not isinstance(found, list) or not found or not all(type(value) in (int, float) for value in found):
        raise _Contradiction(f"{what} is bucketized with boundaries={found}")
    return found


def _check_file(file: DatasetFile, with_daction: bool, where: str) -> None:
    what = f"the file {file.path!r}"
    name = inner_name(file.path, where, REMEDY)
    if name != file.path or file.split not in SPLITS or not name.startswith(f"{file.split}/"):
        raise _Contradiction(f"{what} is of split={file.split!r}, and the files of a split are below its folder")
    _check_xxh3(file.xxh3, what)
    if not 1 <= file.bytes <= _MOST or not file.row_groups:
        raise _Contradiction(f"{what} has {file.bytes} bytes and {len(file.row_groups)} row groups")
    for number, group in enumerate(file.row_groups):
        if not _counts_can_be(group, with_daction):
            raise _Contradiction(f"{what}, row group {number} has the counts {group}")


def _counts_can_be(group: RowGroup, with_daction: bool) -> bool:
    """Say whether the counts of a row group can be: each row has an impression, an impression each label once."""
    dactions = group.dactions if with_daction else 0
    if dactions is None or (group.dactions is not None and not with_daction):
        return False
    labels = (group.clicks, group.conversions, dactions)
    return 1 <= group.rows <= group.impressions <= _MOST and all(0 <= count <= group.impressions for count in labels)


def _check_audit(audit: Mapping[str, Any], where: str) -> None:
    """Check what other jobs read of the audit's counts, each where it is: reason → lines, the quarantine's files."""
    for name in ("lines", "quarantined", "kept", "left_out", "events"):
        if not isinstance(audit.get(name, {}), dict):
            raise _Contradiction(f"audit.{name} is no object")
    quarantined, files = audit.get("quarantined", {}), audit.get("quarantine", [])
    if not isinstance(files, list) or not all(map(_is_count, quarantined.values())):
        raise _Contradiction("audit.quarantined has what is no count, or audit.quarantine is no list")
    for file in files:
        if not isinstance(file, dict) or not _is_count(file.get("bytes")) or not _is_count(file.get("lines")):
            raise _Contradiction(f"audit.quarantine has {str(file)[:80]}, which has no bytes and lines")
        name = inner_name(file.get("path"), where, REMEDY)
        _check_xxh3(file.get("xxh3"), f"the file {name!r}")
    _check_unique((file["path"] for file in files), "the file")
    if sum(file["lines"] for file in files) != sum(quarantined.values()):
        raise _Contradiction(
            f"{sum(quarantined.values())} lines are quarantined, and the files of the quarantine have "
            f"{sum(file['lines'] for file in files)}"
        )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _check_xxh3(xxh3: object, what: str) -> None:
    if not isinstance(xxh3, str) or not _XXH3.match(xxh3):
        raise _Contradiction(f"{what} has the checksum {str(xxh3)[:40]!r}, which is no xxh3 of 16 hex digits")


def _check_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _Contradiction(f"{what} {name!r} stands twice in it")
        seen.add(name)
