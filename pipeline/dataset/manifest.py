"""The contract between pipeline/ and training/: what a dataset holds, and which files belong to it.

`manifest.json` is written last, by atomic rename; a directory without it is not a dataset. It names every file
with its size, checksum and the counts of each row group, so that a reader plans its epoch without opening one, and
it holds nothing that differs between two runs of the same input and settings: no host, no path, no time.

Every job reads it here, and believes nothing of it: `Manifest.from_json` checks types, manifest_checks ranges and sums.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as dataclass_field
from typing import Any

import pyarrow as pa
import xxhash
from pyarrow import fs as pafs

from pipeline.dataset.json_text import (
    CONTENT_XXH3,
    WrongType,
    canonical_text,
    check_own_xxh3,
    parse_json,
    typed,
    xxh3_of_content,
)
from pipeline.dataset.kinds import CATEGORICAL, STORED_KINDS, num_inputs
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError, printable, reason_of
from pipeline.locations import open_location

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
#: The end of every message about a damaged dataset.
REMEDY = "run jobs.preprocess again."
SPLITS = ("train", "validation", "test")
LABELS = ("click", "daction", "conversion")
SCOPES = ("context", "impression")
ARITIES = ("one", "many")
#: Indices that every field has before its first id, and how many they are.
MISSING, OUT_OF_VOCABULARY = 0, 1
NUM_RESERVED_ROWS = 2


@dataclass(frozen=True)
class ManifestField:
    """One feature of the log, as the trainer needs to know it."""

    name: str
    raw_id: str
    scope: str  # context | impression
    arity: str  # one | many
    weighted: bool
    num_rows: int  # rows of the embedding table, the reserved ones included; 0 without a table
    vocabulary: str  # path of its Parquet file relative to the dataset; empty for fields without one
    vocabulary_xxh3: str
    kind: str = CATEGORICAL  # one of dataset.kinds
    hash_buckets: int = 0  # index = 2 + hash(raw id) mod hash_buckets where it is not 0
    #: µ and σ over the train split: of a numeric field, for tanh((v − µ)/σ) (ESM² eq. 17); of each number of a vector
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    parameters: Mapping[str, Any] = dataclass_field(default_factory=dict, hash=False)  # of its kind: boundaries, …

    @property
    def stored(self) -> str:
        """The form of its column: INDEX, NUMBER or VECTOR."""
        return STORED_KINDS[self.kind].form

    @property
    def num_inputs(self) -> int:
        """How many numbers of it go into the towers themselves."""
        return num_inputs(self.kind, self.parameters)


@dataclass(frozen=True)
class RowGroup:
    """The counts of one Parquet row group; `dactions` is None where the label is unknown."""

    rows: int  # context rows
    impressions: int
    clicks: int
    conversions: int
    dactions: int | None = None


@dataclass(frozen=True)
class DatasetFile:
    """One Parquet file of one split, by its path relative to the dataset."""

    path: str
    split: str
    bytes: int
    xxh3: str
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class Source:
    """One raw input file, by the name that it has inside its source directory."""

    name: str
    bytes: int
    fingerprint: str = ""  # of its content; empty in datasets of earlier releases


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; see DESIGN §4 and docs/dataset.md."""

    settings: Mapping[str, Any]
    settings_xxh3: str
    sources: tuple[Source, ...]
    fields: tuple[ManifestField, ...]  # in catalogue order, which is the order of the towers' inputs
    labels: Mapping[str, str]  # label name → its definition in words; daction absent where unknown
    files: tuple[DatasetFile, ...]
    totals: Mapping[str, Mapping[str, int]]  # split → rows, impressions, clicks, dactions, conversions
    audit: Mapping[str, Any]
    lineage: tuple[str, ...] = ()  # xxh3 of the manifests whose vocabularies this one extends, the nearest first
    format_version: int = FORMAT_VERSION
    has_own_xxh3: bool = True  # whether the text has a checksum of itself; False for one that an earlier release wrote

    def files_of(self, split: str) -> tuple[DatasetFile, ...]:
        """Return the files of `split` in manifest order. Raises InputError if it has no impressions."""
        if split not in SPLITS:
            raise InputError(f"split={split} is not one of {', '.join(SPLITS)}.")
        files = tuple(file for file in self.files if file.split == split)
        if not files:
            present = ", ".join(sorted({file.split for file in self.files})) or "none"
            raise InputError(
                f"The dataset has no impressions in split={split} (it has: {present}); choose one of these."
            )
        return files

    def fields_of(self, scope: str | None = None, stored: str | None = None) -> tuple[ManifestField, ...]:
        """Return the fields of scope "context" or "impression" and of form INDEX, NUMBER or VECTOR (None: of any), in
        catalogue order."""
        return tuple(
            field
            for field in self.fields
            if (scope is None or field.scope == scope) and (stored is None or field.stored == stored)
        )

    def num_inputs(self, scope: str) -> int:
        """Return how many numbers of the fields of a scope go into the towers themselves."""
        return sum(field.num_inputs for field in self.fields_of(scope))

    def to_json(self) -> str:
        """Return the canonical text: the same dataset gives the same bytes."""
        content = asdict(self)
        for entry in content["fields"]:
            if not entry["parameters"]:
                del entry["parameters"]
        for source in content["sources"]:
            if not source["fingerprint"]:
                del source["fingerprint"]
        if content.pop("has_own_xxh3"):
            content[CONTENT_XXH3] = xxh3_of_content(content)
        return canonical_text(content)

    @property
    def xxh3(self) -> str:
        """The hash of the canonical text."""
        return xxhash.xxh3_64_hexdigest(self.to_json().encode())

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """Parse `text`, read from `where`. Raises InputError where it is no manifest of a known format, or contradicts itself."""
        from pipeline.dataset.manifest_checks import check_kinds, check_manifest  # here: they need the classes above

        raw = parse_json(text, where, REMEDY)
        if not isinstance(raw, dict) or "format_version" not in raw:
            raise InputError(f"{where} is not a manifest (it has no format_version); {REMEDY}")
        if raw["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{where} has format_version={printable(str(raw['format_version']))} and this release reads "
                f"{FORMAT_VERSION}; preprocess the source again with this release."
            )
        check_kinds(raw, where)
        known = {entry.name for entry in fields(cls)} - {"has_own_xxh3"}
        try:
            found: Manifest = typed(cls, {name: value for name, value in raw.items() if name in known})
        except WrongType as error:
            raise InputError(f"{where} is damaged: {error}; {REMEDY}") from error
        check_manifest(found, where)
        check_own_xxh3(raw, where, REMEDY)
        return replace(found, has_own_xxh3=CONTENT_XXH3 in raw)


def totals_of(files: Iterable[DatasetFile]) -> dict[str, dict[str, int]]:
    """Sum the row groups' counts per split; `dactions` only where every group knows it."""
    totals: dict[str, dict[str, int]] = {}
    for file in files:
        total = totals.setdefault(file.split, {"rows": 0, "impressions": 0, "clicks": 0, "conversions": 0})
        for group in file.row_groups:
            for name, value in asdict(group).items():
                if value is not None:
                    total[name] = total.get(name, 0) + value
    return totals


def dataset_files(dataset: str | os.PathLike[str], remedy: str = REMEDY) -> NamedFiles:
    """Return the files that the manifest of `dataset` names, to be opened and compared with it."""
    return NamedFiles.below(dataset, f"{os.fspath(dataset).rstrip('/')}/{MANIFEST}", remedy)


def load_manifest(dataset: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of `dataset`. Raises InputError where there is none, for then there is no dataset."""
    return read_manifest(dataset)[0]


def read_manifest(dataset: str | os.PathLike[str], key: str = "data") -> tuple[Manifest, str]:
    """Read the manifest of `dataset` and the xxh3 of its bytes. Raises InputError, of the setting `key`, without one."""
    filesystem, root = open_location(dataset)
    path = f"{root.rstrip('/')}/{MANIFEST}"
    try:
        if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
            raise _no_dataset(filesystem, root, f"{key}={dataset}", os.fspath(dataset))
        with NamedFiles(filesystem, root.rstrip("/"), f"{key}={dataset}", REMEDY).open(MANIFEST) as stream:
            text = stream.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{key}={dataset} cannot be read ({reason_of(error)}); check the address, the network and the credentials."
        ) from error
    return Manifest.from_json(text, path), xxhash.xxh3_64_hexdigest(text)


def _no_dataset(filesystem: pafs.FileSystem, root: str, setting: str, dataset: str) -> InputError:
    """Return the error for a folder without a manifest, or without the folder."""
    if filesystem.get_file_info(root).type == pafs.FileType.NotFound:
        return InputError(f"{setting} does not exist; write it with: python -m jobs.preprocess out={dataset}")
    return InputError(
        f"{setting} has no {MANIFEST}, so no finished dataset is there; run (or rerun) python -m jobs.preprocess out={dataset}"
    )


def field_differences(old: Sequence[Any], new: Sequence[Any], keys: Sequence[str]) -> list[str]:
    """Describe what has changed between two catalogues of fields: names, the attributes `keys`, the order."""
    was, is_now = ({entry.name: entry for entry in fields} for fields in (old, new))
    found = [f"the field {name} is gone" for name in was if name not in is_now]
    found += [f"the field {name} is new" for name in is_now if name not in was]
    for name in was:
        for key in keys:
            if name in is_now and getattr(was[name], key) != getattr(is_now[name], key):
                found.append(f"{name} was {key}={getattr(was[name], key)} and is {getattr(is_now[name], key)}")
    if not found and list(was) != list(is_now):
        found.append("the fields stand in another order, which is that of the towers' inputs")
    return found
