"""The base: an earlier dataset whose vocabularies the new one extends (`vocabulary.base`), for batches day by day.

Every index of the base stays, whether or not its id occurs today (but for vocabulary.max_age_days); ids that are new and frequent enough follow behind,
by falling count, ties by raw id. A numeric field keeps the base's mean and standard deviation. So a model of yesterday
keeps all of its rows today. Only the manifest and the vocabularies of the base are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.dataset.manifest import Manifest, ManifestField, dataset_files, field_differences, read_manifest
from pipeline.dataset.named_files import NamedFiles
from pipeline.dataset.vocabulary_file import read_vocabulary
from pipeline.errors import InputError
from pipeline.features.fields import Field
from pipeline.features.vocabulary import Vocabulary

_SAME_AS_BASE = ("raw_id", "scope", "arity", "weighted", "kind", "hash_buckets", "parameters")


@dataclass(frozen=True)
class Base:
    """A finished dataset."""

    path: str
    manifest: Manifest
    manifest_xxh3: str

    @classmethod
    def of(cls, path: str, fields: Sequence[Field]) -> "Base":
        """Read the manifest of `path`. Raises InputError where there is none, or one with other fields."""
        manifest, manifest_xxh3 = read_manifest(path, "vocabulary.base")
        if found := field_differences(manifest.fields, fields, _SAME_AS_BASE):
            raise InputError(
                f"vocabulary.base={path} has another catalogue: {'; '.join(found)}; give the features of the base, "
                "or start a vocabulary of its own (vocabulary.base=null)."
            )
        return cls(path, manifest, manifest_xxh3)

    @property
    def lineage(self) -> tuple[str, ...]:
        """xxh3 of the manifests that a dataset on this base extends, the nearest first."""
        return (self.manifest_xxh3, *self.manifest.lineage)

    def field(self, name: str) -> ManifestField:
        """Return a field of the base's manifest."""
        return next(entry for entry in self.manifest.fields if entry.name == name)

    def vocabularies(self) -> list[Vocabulary]:
        """Read the vocabulary of each field. Raises InputError where a file is not what the manifest says."""
        remedy = "restore the file, or preprocess vocabulary.base again."
        return vocabularies_of(dataset_files(self.path, remedy), self.manifest.fields)


def vocabularies_of(files: NamedFiles, fields: Sequence[ManifestField]) -> list[Vocabulary]:
    """Read the vocabulary of each field, counts aside; one without ids for a field that has none."""
    return [_vocabulary_of(files, entry) for entry in fields]


def _vocabulary_of(files: NamedFiles, entry: ManifestField) -> Vocabulary:
    if not entry.vocabulary:
        none = np.empty(0, np.int64)
        return Vocabulary(none, none, hash_buckets=entry.hash_buckets)
    table = read_vocabulary(files, entry)
    texts = tuple(table["text"].to_pylist()) if "text" in table.column_names else ()
    last_seen_N = table["last_seen"].to_numpy() if "last_seen" in table.column_names else None
    return Vocabulary(table["raw_id"].to_numpy(), np.zeros(len(table), np.int64), texts, last_seen_N=last_seen_N)


def with_room(fields: Sequence[Field], base: Sequence[Vocabulary]) -> tuple[Field, ...]:
    """Reduce the `max_ids` of each field by the ids of the base: what is left is the room for new ones."""
    return tuple(
        entry if entry.max_ids is None else replace(entry, max_ids=max(entry.max_ids - len(old.id_N), 0))
        for entry, old in zip(fields, base, strict=True)
    )


def extend(base: Vocabulary, known: Vocabulary, new: Vocabulary) -> Vocabulary:
    """Append `new` to `base`. `known` has today's counts of ids of the base; the others' are 0."""
    count_N = np.zeros(len(base.id_N), np.int64)
    order = np.argsort(base.id_N)
    count_N[order[np.searchsorted(base.id_N, known.id_N, sorter=order)]] = known.count_N
    ids, counts = np.concatenate([base.id_N, new.id_N]), np.concatenate([count_N, new.count_N])
    texts = (*base.texts, *(None for _ in new.id_N)) if base.texts else ()
    last_seen_N = None if base.last_seen_N is None else np.concatenate([base.last_seen_N, np.zeros_like(new.id_N)])
    return Vocabulary(ids, counts, texts, base.hash_buckets, last_seen_N)


def retire(vocabulary: Vocabulary, today_ms: int, max_age_ms: float) -> Vocabulary:
    """Drop the ids that no train split has had for longer than `max_age_ms`; the others keep their order.

    An id with a count was seen at `today_ms`, the end of today's train split. Where the base does not say when it saw an
    id, its age begins today.
    """
    before_N = vocabulary.last_seen_N if vocabulary.last_seen_N is not None else np.full_like(vocabulary.id_N, today_ms)
    last_seen_N = np.where(vocabulary.count_N > 0, today_ms, before_N)
    kept_N = today_ms - last_seen_N <= max_age_ms
    texts = tuple(text for text, is_kept in zip(vocabulary.texts, kept_N, strict=False) if is_kept)
    return replace(
        vocabulary,
        id_N=vocabulary.id_N[kept_N],
        count_N=vocabulary.count_N[kept_N],
        texts=texts,
        last_seen_N=last_seen_N[kept_N],
    )
