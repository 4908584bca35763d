"""Replace the content of a dataset's file, and read what the feed says about it."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from slow_reading import feed_of

from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError


def error_of(path: Path, manifest: Manifest, **settings: Any) -> str:
    """Return the error message that the consumer gets, within seconds, with every thread gone."""
    before = threading.active_count()
    start_s = time.monotonic()
    feed = feed_of(path, manifest, **settings)
    with pytest.raises(InputError) as caught:
        list(feed.batches(0))
    assert time.monotonic() - start_s < 10
    assert threading.active_count() == before
    return str(caught.value)


def with_content(path: Path, manifest: Manifest, content: bytes) -> Manifest:
    """Return the manifest with the checksum of `content` in place of the first file's."""
    first = manifest.files[0]
    (path / first.path).write_bytes(content)
    forged = dataclasses.replace(first, bytes=len(content), xxh3=xxhash.xxh3_64_hexdigest(content))
    return dataclasses.replace(manifest, files=(forged, *manifest.files[1:]))


def with_table(path: Path, manifest: Manifest, table: pa.Table, **options: Any) -> Manifest:
    sink = pa.BufferOutputStream()
    rows = manifest.files[0].row_groups[0].rows
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        start = 0
        for group in manifest.files[0].row_groups:
            writer.write_table(table.slice(start, group.rows), row_group_size=max(rows, group.rows))
            start += group.rows
    return with_content(path, manifest, sink.getvalue().to_pybytes())


def first_table(path: Path, manifest: Manifest) -> pa.Table:
    return pq.read_table(path / manifest.files[0].path)
