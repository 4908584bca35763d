"""Two thousand mutated lines, each read as its slow twin reads it; `python -m benchmarks.fuzz` tries as many as one likes."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_checks import assert_dataset_equals_reference
from kernel_checks import assert_splits_equal_reference
from mutations import mutated_log

from pipeline.aliccp.byte_ranges import input_splits
from pipeline.chunks.sources import SKELETON, SourceFile
from pipeline.config.preprocess import PreprocessSettings
from pipeline.features.fields import catalogue
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
OF_A_LINE = {"", "malformed_line", "bad_label", "bad_context_key", "bad_feature"}


@pytest.mark.parametrize("seed", [1])
def test_the_kernel_reads_mutated_lines_as_the_reference_does_wherever_chunks_are_cut(
    tmp_path: Path, preprocess_settings: Settings, seed: int
) -> None:
    fields = catalogue(preprocess_settings(tmp_path, tmp_path).features, 1)
    draw = random.Random(seed)
    reasons: Counter[str] = Counter()
    for num_long in (0, 1):
        log = mutated_log(10 * seed + num_long, 1000, num_long=num_long)
        log.write(tmp_path)
        for table in log.lines:
            path = tmp_path / f"{table}.csv"
            text = path.read_bytes()
            # Tiny splits of a line of a megabyte would each read it to its end.
            split_bytes, chunk_bytes = (
                (10**6, 2**16) if num_long else draw.choice(((64, 1), (1000, 50), (30_000, 4096)))
            )
            source = SourceFile(0, path.name, str(path), len(text), SKELETON, "train", False)
            splits = input_splits([source], split_bytes)
            reasons += assert_splits_equal_reference(splits, chunk_bytes, text, table.startswith(SKELETON), fields)
    assert set(reasons) == OF_A_LINE
    assert sum(reasons.values()) > 1000


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("seed", [3, 4])
def test_the_dataset_of_a_mutated_log_holds_the_rows_of_the_reference_and_every_other_line_is_accounted_for(
    tmp_path: Path, preprocess_settings: Settings, seed: int
) -> None:
    draw = random.Random(seed)
    more = ["vocabulary.min_count=1", "rows.max_impressions=8", "rows.impressions_per_file=300"]
    more += [f"checks.duplicates={('context', 'global')[seed % 2]}", "split.validation=0.3"]
    more += [
        f"checks.{reason}=quarantine" for reason in ("feature_count_mismatch", "conversion_without_click") if seed % 2
    ]
    raw = mutated_log(seed, 1000, share=0.3).write(tmp_path / "raw", num_parts=3 * (seed % 2))
    settings = preprocess_settings(raw, tmp_path / "out", *more, f"source.split_bytes={draw.randrange(20_000, 60_000)}")
    manifest = preprocess(settings)
    assert_dataset_equals_reference(raw, tmp_path / "out", settings)
    met = {reason for reason, number in manifest.audit["quarantined"].items() if number}
    assert len(met) == (9 if seed % 2 else 7)
