"""checks.duplicates=global: an impression id stands once in a period, whichever contexts it came in, at any number of splits."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_dataset_equals_reference
from raw_log import RawLog, context_line, impression_line, key_of

from pipeline.chunks import line_columns
from pipeline.chunks.chunk import Chunk, Parsed
from pipeline.chunks.reasons import BAD_FEATURE
from pipeline.chunks.sources import CONTEXT, SKELETON, SourceFile
from pipeline.config.preprocess import ChecksSettings, PreprocessSettings
from pipeline.errors import InputError
from pipeline.kernels.hashing import splits_of
from pipeline.passes.duplicates import (
    BYTES_PER_PART,
    KINDS,
    OFFSET_BITS,
    Occurrences,
    Partitions,
    Repeats,
    ids_in_several_contexts,
    num_partitions,
    reject_repeats,
)
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
GLOBAL = "checks.duplicates=global"


def chunk_of(ordinal: int, table: str, period: str, lines: list[tuple[int, int, int]]) -> Chunk:
    """Make a chunk whose lines are (sample id, key, reason), ten bytes each."""
    line_table = np.zeros((len(lines), line_columns.LINE_COLUMNS), np.int64)
    for line, (sample_id, key, reason) in enumerate(lines):
        line_table[line, [line_columns.SAMPLE_ID, line_columns.KEY, line_columns.REASON, line_columns.START]] = (
            sample_id,
            key,
            reason,
            10 * line,
        )
    parsed = Parsed(line_table, np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.float32))
    return Chunk(SourceFile(ordinal, "log", "log", 1, table, period, False), 1000, b"", parsed, np.zeros(len(lines)))


def repeats_of(chunks: list[Chunk], for_each: int, tasks: int) -> Repeats:
    """Run the first pass over `chunks` by hand, dealt to `tasks` tasks."""
    partitions = Partitions(tuple(range(100, 100 + len(KINDS) * for_each)))
    shuffled: dict[int, list[bytes]] = {}
    for task in range(tasks):
        occurrences = Occurrences(partitions)
        for chunk in chunks[task::tasks]:
            occurrences.add(chunk)
        for key, blob in occurrences.flush():
            shuffled.setdefault(key, []).insert(0, blob)
        assert not len(occurrences)
    kinds = {key: partitions.kind_of(key) for key in shuffled}
    return Repeats.of(
        [(kinds[key], ids_in_several_contexts(kinds[key][0], blobs)) for key, blobs in shuffled.items()], 0.5, 3
    )


@pytest.mark.parametrize("seed", range(30))
def test_of_an_id_in_several_contexts_the_first_in_the_order_of_the_log_stays(seed: int) -> None:
    draw = random.Random(seed)
    most_ids, most_keys = draw.choice([(3, 3), (40, 4), (10, 30), (10**6, 9)])
    chunks, expected = [], []
    for number, period in enumerate(("train", "test")):
        known = {key for key in range(most_keys) if draw.random() < 0.8}
        lines = [(0, key, draw.choice([0, 0, BAD_FEATURE])) for key in known]
        chunks.append(chunk_of(number, CONTEXT, period, lines))
        known = {key for _, key, reason in lines if not reason}
        owner: dict[int, int] = {}
        for ordinal in (2 + 2 * number, 3 + 2 * number):
            reasons = [draw.choice([0] * 5 + [BAD_FEATURE]) for _ in range(draw.randrange(1, 60))]
            lines = [(draw.randrange(-2, most_ids), draw.randrange(most_keys), reason) for reason in reasons]
            chunks.append(chunk_of(ordinal, SKELETON, period, lines))
            for line, (id_, key, reason) in enumerate(lines):
                if not reason and key in known and owner.setdefault(id_, key) != key:
                    split = splits_of(np.array([key]), period == "test", 0.5, 3)[0]
                    expected.append(((ordinal << OFFSET_BITS) + 1000 + 10 * line, split))
    wanted = sorted(expected)
    for for_each, tasks in ((1, 1), (3, 4)):
        draw.shuffle(chunks)
        found = repeats_of(chunks, for_each, tasks)
        assert list(zip(found.position_X.tolist(), found.split_X.tolist(), strict=True)) == wanted
    for chunk in chunks:
        before = chunk.parsed.line_table[:, line_columns.REASON].copy()
        reject_repeats(chunk, found.position_X)
        marked = np.flatnonzero(chunk.parsed.line_table[:, line_columns.REASON] != before)
        places = (chunk.source.ordinal << OFFSET_BITS) + 1000 + 10 * marked
        first = chunk.source.ordinal << OFFSET_BITS
        last = (chunk.source.ordinal + 1) << OFFSET_BITS
        assert places.tolist() == [place for place, _ in wanted if first <= place < last]


def test_occurrences_go_to_as_many_partitions_as_the_impressions_have_bytes() -> None:
    sources = [SourceFile(0, "a", "a", 10**12, CONTEXT, "train", False), SourceFile(1, "b", "b", 1, SKELETON, "train", False)]  # fmt: skip
    assert num_partitions(sources) == len(KINDS)
    big = SourceFile(2, "c", "c", 3 * BYTES_PER_PART, SKELETON, "test", False)
    assert num_partitions([*sources, big]) == 4 * len(KINDS)


def colliding_log(seed: int) -> RawLog:
    """Draw a log of few ids over many contexts, some of which are missing; ids of train come again in test."""
    draw = random.Random(seed)
    log = RawLog()
    for period in ("train", "test"):
        contexts = [number for number in range(30) if draw.random() < 0.8]
        log.lines[f"common_features_{period}"] = [
            context_line(key_of(number), [("101", number, "1.0")]) for number in draw.sample(contexts, len(contexts))
        ]
        lines = []
        for _ in range(300):
            key, click = key_of(draw.randrange(30)), draw.randrange(2)
            features = [("205", draw.randrange(5), "1.0"), ("702", 3, draw.choice(["0.5", "0.5", "x"]))]
            lines.append(impression_line(draw.randrange(120), click, 0, key, features))
        log.lines[f"sample_skeleton_{period}"] = lines
    return log


@pytest.mark.usefixtures("spark")
def test_the_dataset_of_colliding_ids_is_that_of_the_reference_at_any_number_of_splits(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = colliding_log(1).write(tmp_path / "raw")
    manifests = []
    for split_bytes in (4000, 10**6):
        out = tmp_path / str(split_bytes)
        settings = preprocess_settings(raw, out, GLOBAL, "split.validation=0.3", f"source.split_bytes={split_bytes}")
        manifests.append(preprocess(settings))
        assert_dataset_equals_reference(raw, out, settings)
    assert manifests[0] == manifests[1]
    within = preprocess(preprocess_settings(raw, tmp_path / "within", "split.validation=0.3"))
    assert within.audit["quarantined"]["missing_context"] == manifests[0].audit["quarantined"]["missing_context"]
    assert within.audit["quarantined"]["duplicate_impression"] < 50
    assert manifests[0].audit["quarantined"]["duplicate_impression"] > 100
    ids = [
        id_
        for file in manifests[0].files
        if file.split != "test"
        for row in pq.read_table(tmp_path / "4000" / file.path)["impression_id"].to_pylist()
        for id_ in row
    ]
    assert len(ids) == len(set(ids)) > 50


@pytest.mark.usefixtures("spark")
def test_a_policy_of_fail_names_the_first_repeat_in_another_context(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log = RawLog()
    for period in ("train", "test"):
        log.lines[f"common_features_{period}"] = [context_line(key_of(n), [("101", n, "1.0")]) for n in (1, 2)]
        orphan, *others = [impression_line(5, 0, 0, key_of(number), [("205", 1, "1.0")]) for number in (9, 1, 2)]
        log.lines[f"sample_skeleton_{period}"] = [orphan, *others]
    raw = log.write(tmp_path / "raw")
    offset = sum(len(line) + 1 for line in log.lines["sample_skeleton_train"][:2])
    fail = "checks.duplicate_impression=fail"
    preprocess(preprocess_settings(raw, tmp_path / "within", fail))
    with pytest.raises(InputError, match=f"sample_skeleton_train.csv, byte {offset}: duplicate_impression.*quarantine"):
        preprocess(preprocess_settings(raw, tmp_path / "out", fail, GLOBAL))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_where_duplicates_are_looked_for_is_context_or_global() -> None:
    with pytest.raises(InputError, match=r"checks.duplicates=anywhere is not one of context, global"):
        ChecksSettings(duplicates="anywhere")
