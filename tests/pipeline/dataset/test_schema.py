"""The schema: pipeline/ writes it and training/ reads it, so a file's own schema is what both are held against."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.manifest import MANIFEST, ManifestField, load_manifest
from pipeline.dataset.schema import columns_of, schema_of
from pipeline.errors import InputError


def field(scope: str, arity: str = "one", weighted: bool = False, kind: str = "categorical") -> ManifestField:
    return ManifestField("x", "1", scope, arity, weighted, 5, "", "", kind=kind)


INDICES = "list<element: int32 not null> not null"


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        (field("context"), {"x": "int32 not null"}),
        (field("context", "many"), {"x": INDICES}),
        (
            field("context", "many", weighted=True),
            {"x": INDICES, "x__weight": "list<element: float not null> not null"},
        ),
        (field("context", kind="numeric"), {"x": "float"}),
        (field("impression"), {"x": INDICES}),
        (field("impression", "many"), {"x": INDICES, "x__length": INDICES}),
        (field("impression", kind="numeric"), {"x": "list<element: float> not null"}),
    ],
)
def test_the_columns_of_a_field_follow_from_its_scope_arity_and_kind(
    entry: ManifestField, columns: dict[str, str]
) -> None:
    found = {column.name: f"{column.type}{'' if column.nullable else ' not null'}" for column in columns_of(entry)}
    assert found == columns


def test_the_schema_of_a_manifest_is_that_of_its_files(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path, num_contexts=20, numeric=True)
    stored = pq.read_schema(tmp_path / manifest.files[0].path)
    for column in schema_of(manifest.fields, ("click", "conversion"), timed=False):
        found = stored.field(column.name)
        assert (found.type, found.nullable) == (column.type, column.nullable), column


def test_a_kind_that_this_release_does_not_know_is_refused(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path, num_contexts=20)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["fields"][0]["kind"] = "quantized"
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"of kind=quantized, and this release knows categorical, numeric, bucketized"):
        load_manifest(tmp_path)
