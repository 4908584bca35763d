"""Files that no manifest names: they stay while a superseded manifest cannot be read, for it may name any of them."""

from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from pipeline.storage.commit import remove_unnamed_files
from pipeline.storage.local_store import LocalStore


def test_a_damaged_superseded_manifest_keeps_every_file_and_ends_no_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(tmp_path, num_contexts=20)
    stray = tmp_path / "train" / "part-00009-0123456789abcdef.parquet"
    stray.write_bytes(b"of an earlier generation")
    kept = tmp_path / "_superseded" / "99999999999.json"  # superseded in the future, so within the grace period
    kept.parent.mkdir()
    kept.write_bytes(b'{"\x1b[2J"')
    remove_unnamed_files(LocalStore(tmp_path), grace_hours=0)
    assert stray.exists()
    message = capsys.readouterr().err
    assert message.startswith("unnamed files stay: _superseded/99999999999.json is not valid JSON")
    assert message.strip().isprintable()
    kept.unlink()
    remove_unnamed_files(LocalStore(tmp_path), grace_hours=0)
    assert not stray.exists()
