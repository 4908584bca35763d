"""The commit of scores: as of a dataset, with scores.json in the place of manifest.json.

lock ─▶ write to staging ─▶ content names ─▶ audit.json, run.json ─▶ flush ─▶ scores.json ─▶ remove unnamed files

Many readers take a folder of scores by its name, and would read two generations as one. So the files of an earlier one are
removed at once, and not after a grace period as those of a dataset.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.dataset.json_text import (
    CONTENT_XXH3,
    WrongType,
    canonical_text,
    check_own_xxh3,
    parse_json,
    typed,
    xxh3_of_content,
)
from pipeline.dataset.manifest import Source
from pipeline.errors import InputError
from pipeline.storage.commit import QUARANTINE_FOLDER, remove_files, unnamed_data_files
from pipeline.storage.store import Store

SCORES, SCORES_FOLDER = "scores.json", "scores"
_SCORES_VERSION = 1
_SCORES_REMEDY = "run jobs.score again, with overwrite=true."


@dataclass(frozen=True)
class ScoreFile:
    """One Parquet file of scores, by its path relative to scores.json."""

    path: str
    split: str  # of the log or the dataset: train | validation | test
    bytes: int
    xxh3: str
    impressions: int


@dataclass(frozen=True)
class ScoreManifest:
    """The content of scores.json: which files the scores are, and what they were made of."""

    settings: Mapping[str, Any]  # that decide what the scores are
    origin: Mapping[str, str]  # of the model: run, checkpoint, step and so on
    sources: tuple[Source, ...]  # the raw files; of a scored dataset, its manifest
    outputs: tuple[str, ...]  # the columns of probabilities
    files: tuple[ScoreFile, ...]
    totals: Mapping[str, int]  # split → impressions
    audit: Mapping[str, Any]  # lines read, quarantined and so on; empty of a scored dataset
    format_version: int = _SCORES_VERSION

    def to_json(self) -> str:
        """Return the canonical text, with a checksum of itself."""
        content = asdict(self)
        return canonical_text({**content, CONTENT_XXH3: xxh3_of_content(content)})

    @property
    def xxh3(self) -> str:
        """The hash of the canonical text."""
        return xxhash.xxh3_64_hexdigest(self.to_json().encode())


def read_scores(store: Store) -> ScoreManifest | None:
    """Read scores.json; None if there is none. Raises InputError for a damaged one."""
    text = store.read(SCORES)
    return None if text is None else _parse_scores(text, f"{store.location}/{SCORES}")


def publish_scores(store: Store, scores: ScoreManifest) -> None:
    """Commit: replace scores.json, after flushing all that it names."""
    store.flush(tuple({str(Path(file.path).parent) for file in scores.files} | {SCORES_FOLDER, QUARANTINE_FOLDER}))
    store.put(SCORES, scores.to_json().encode())


def remove_unnamed_scores(store: Store) -> None:
    """Remove the files that scores.json does not name, and the staging of dead runs. Call it under the lock."""

    def named(texts: Mapping[str, bytes]) -> Iterable[str]:
        for name, text in texts.items():
            scores = _parse_scores(text, name)
            yield from (file.path for file in scores.files)
            yield from (file["path"] for file in scores.audit.get(QUARANTINE_FOLDER, ()))

    folders = (SCORES_FOLDER, QUARANTINE_FOLDER)
    remove_files(store, lambda: unnamed_data_files(store, 0.0, SCORES, folders, named))


def _parse_scores(text: bytes, where: str) -> ScoreManifest:
    raw = parse_json(text, where, _SCORES_REMEDY)
    if not isinstance(raw, dict) or raw.get("format_version") != _SCORES_VERSION:
        raise InputError(f"{where} is no list of scores of format_version={_SCORES_VERSION}; {_SCORES_REMEDY}")
    check_own_xxh3(raw, where, _SCORES_REMEDY)
    try:
        found: ScoreManifest = typed(
            ScoreManifest, {name: value for name, value in raw.items() if name != CONTENT_XXH3}
        )
    except WrongType as error:
        raise InputError(f"{where} is damaged: {error}; {_SCORES_REMEDY}") from error
    return found
