"""The changes that benchmarks.preprocess_faults makes to inputs are the ones that it names."""

import random
from pathlib import Path

from raw_log import small_log

from benchmarks.preprocess_faults import cut, delete, exchange_content, grow
from pipeline.aliccp.find import find_sources
from pipeline.aliccp.reader import fingerprint_of_file


def test_each_change_is_the_one_that_its_name_says(tmp_path: Path) -> None:
    raw, draw = small_log().write(tmp_path / "raw"), random.Random(2)
    path = raw / "sample_skeleton_train.csv"
    whole = path.read_bytes()

    def fingerprint() -> str:
        return next(
            fingerprint_of_file(source, 1 << 20)
            for source in find_sources(str(raw), with_actions=False)
            if source.path == str(path)
        )

    before = fingerprint()
    exchange_content(path, draw)
    assert (path.stat().st_size, fingerprint() == before) == (len(whole), False)
    path.write_bytes(whole)
    assert fingerprint() == before
    grow(path, draw)
    assert path.read_bytes().startswith(whole)
    assert path.stat().st_size > len(whole)
    cut(path, draw)
    assert path.stat().st_size < 2 * len(whole)
    delete(path, draw)
    assert not path.exists()
