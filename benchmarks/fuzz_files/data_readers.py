"""Readers of raw logs and of datasets: jobs.preprocess, jobs.inspect and the trainer's feed."""

import contextlib
import dataclasses
import functools
import gzip
import io
from pathlib import Path

import xxhash

from benchmarks.fuzz_files import inputs
from benchmarks.fuzz_files.inputs import DATA, GZIP_RAW, RAW
from benchmarks.fuzz_files.reading import Disagreement, Reading, digest_of
from jobs import inspect
from pipeline.aliccp.byte_ranges import input_splits
from pipeline.aliccp.find import find_sources
from pipeline.aliccp.reader import ChunkReader
from pipeline.chunks.sources import SKELETON
from pipeline.dataset.manifest import DatasetFile, Manifest, load_manifest
from pipeline.features.base_vocabulary import Base
from pipeline.features.fields import Catalogue, catalogue
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.settings import PAGES, PYARROW, FeedSettings

from kernel_checks import assert_chunks_equal_reference  # isort: skip  (inputs puts tests/support on the path)


def inspected(folder: Path) -> Reading:
    """jobs.inspect: the card, and rows of each split."""
    shown, warnings = [], []
    for split in ("train", "test"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            inspect.run(inspect.InspectSettings(data=str(folder / DATA), split=split, rows=4))
        lines = printed.getvalue().splitlines()
        warnings += [line for line in lines if line.startswith("warning: ")]
        shown += [line for line in lines if not line.startswith("warning: ")]
    return "\n".join(shown).rstrip(), warnings


def fed_by_pages(folder: Path) -> Reading:
    """The trainer's feed with our own decoder."""
    return _fed(folder, load_manifest(folder / DATA), PAGES), []


def fed_by_pyarrow(folder: Path) -> Reading:
    """The trainer's feed with pyarrow's decoder."""
    return _fed(folder, load_manifest(folder / DATA), PYARROW), []


def fed_by_both(folder: Path) -> Reading:
    """Both decoders, over files whose checksum a forger has put right: they agree, or one refuses."""
    manifest = _with_forged_checksums(folder, load_manifest(folder / DATA))
    pages, pyarrow = _fed(folder, manifest, PAGES), _fed(folder, manifest, PYARROW)
    if pages != pyarrow:
        raise Disagreement("the two decoders read other values")
    return pages, []


def _fed(folder: Path, manifest: Manifest, decoder: str) -> str:
    found = []
    for split in ("train", "validation", "test"):
        plan = Plan(manifest.files_of(split), batch_size=64, lanes=2, seed=4 if split == "train" else None)
        pooling = {entry.name: "mean" for entry in manifest.fields if entry.arity == "many"}
        feed = Feed(
            str(folder / DATA),
            manifest,
            split,
            plan,
            rank=0,
            world_size=1,
            pooling=pooling,
            settings=FeedSettings(decoder=decoder),
        )
        try:
            found += [f"{split} {step}: {digest_of(batch)}" for step, batch in enumerate(feed.batches(0))]
        finally:
            feed.close()
    return "\n".join(found)


def _with_forged_checksums(folder: Path, manifest: Manifest) -> Manifest:
    def forged(file: DatasetFile) -> DatasetFile:
        path = folder / DATA / file.path
        if not path.is_file():
            return file
        content = path.read_bytes()
        return dataclasses.replace(file, bytes=len(content), xxh3=xxhash.xxh3_64_hexdigest(content))

    return dataclasses.replace(manifest, files=tuple(map(forged, manifest.files)))


def extended(folder: Path) -> Reading:
    """vocabulary.base: the vocabularies that tomorrow's dataset would extend."""
    base = Base.of(str(folder / DATA), _catalogue().fields)
    found = [digest_of([entry.id_N.tolist(), entry.texts, entry.num_rows]) for entry in base.vocabularies()]
    return "\n".join(found), []


def log_read(folder: Path) -> Reading:
    """A raw log in chunks, as both passes read it, beside the slow reading of the tests."""
    return _log_read(folder / RAW), []


def gzip_log_read(folder: Path) -> Reading:
    """The same from gzip files."""
    return _log_read(folder / GZIP_RAW), []


def _log_read(raw: Path) -> str:
    # The slow reading knows fields of ids alone.
    settings = inputs.preprocess_settings_of(raw, raw, features="features=aliccp")
    fields = catalogue(settings.features, 1)
    reader = ChunkReader.of(fields, settings)
    found = []
    for source in find_sources(str(raw), with_actions=False):
        chunks = [(chunk.offset, chunk.text) for split in input_splits([source], 5000) for chunk in reader.read(split)]
        text = Path(source.path).read_bytes()
        try:
            text = gzip.decompress(text) if source.compressed else text
            reasons = assert_chunks_equal_reference(chunks, text, source.table == SKELETON, fields)
        except (AssertionError, OSError, EOFError, StopIteration) as error:
            raise Disagreement(
                f"{source.name}: the slow reading differs ({type(error).__name__} {str(error)[:80]})"
            ) from error
        found.append(f"{source.name}: {sorted(reasons.items())} {digest_of(repr(chunks))}")
    return "\n".join(found)


@functools.cache
def _catalogue() -> Catalogue:
    settings = inputs.preprocess_settings_of(Path("raw"), Path("out"))
    return catalogue(settings.features, settings.vocabulary.min_count, max_ids=settings.vocabulary.max_ids)


def drop_audit(folder: Path) -> None:
    """Leave a dataset without its audit."""
    for name in ("audit.json", "run.json"):
        (folder / DATA / name).unlink()
