"""Raw files: what is found, what is refused in one sentence, and lines that splits neither lose nor read twice."""

import dataclasses
import gzip
import io
import os
import random
import tracemalloc
from pathlib import Path

import pytest
import xxhash
from raw_log import RawLog, small_log

from pipeline.aliccp.byte_ranges import input_splits, read_chunks
from pipeline.aliccp.find import find_sources
from pipeline.chunks.sources import CONTEXT, SKELETON, InputSplit, SourceFile
from pipeline.errors import InputError


def source_of(path: Path, text: bytes, compressed: bool = False) -> SourceFile:
    path.write_bytes(gzip.compress(text) if compressed else text)
    return SourceFile(0, path.name, str(path), path.stat().st_size, SKELETON, "train", compressed)


def lines_with_offsets(split: InputSplit, chunk_bytes: int) -> list[tuple[int, bytes]]:
    found = []
    for offset, chunk, _ in read_chunks(split, 1 << 20, chunk_bytes):
        assert chunk.endswith(b"\n")
        for line in chunk[:-1].split(b"\n"):
            found.append((offset, line))
            offset += len(line) + 1
    return found


@pytest.mark.parametrize("seed", range(20))
def test_splits_of_any_size_give_every_line_once_at_its_offset(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = [b"x" * draw.choice([0, 0, 1, 5, 30, 200]) for _ in range(60)]
    text = b"\n".join(lines) + (b"\n" if draw.random() < 0.5 else b"")
    if not text.endswith(b"\n") and not lines[-1]:
        lines.pop()  # a file that ends in a line feed has no empty line behind it
    offsets = [sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines))]
    expected = list(zip(offsets, lines, strict=True))
    if text.endswith(b"\n") and offsets and offsets[-1] >= len(text):
        expected.pop()
    source = source_of(tmp_path / "log", text)
    for split_bytes in (1, 7, 64, 300, 10**6):
        for chunk_bytes in (1, 16, 4096):
            splits = input_splits([source], split_bytes)
            found = [pair for split in splits for pair in lines_with_offsets(split, chunk_bytes)]
            assert found == expected


@pytest.mark.parametrize("seed", range(20))
def test_lines_that_are_too_long_come_as_their_heads_at_their_offsets_whatever_the_splits(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.aliccp.byte_ranges.KEPT_BYTES", 5)
    draw = random.Random(seed)
    lines = [draw.randbytes(draw.choice([0, 1, 7, 8, 40, 300])).replace(b"\n", b".") for _ in range(30)]
    lines.append(b"the last one" * draw.randrange(1, 3))
    text = b"\n".join(lines) + b"\n" * draw.randrange(2)
    expected, offset = [], 0
    for line in lines:
        is_long = len(line) > 8
        expected.append((offset, line[:5] if is_long else line, xxhash.xxh3_64_intdigest(line) if is_long else None))
        offset += len(line) + 1
    for source in (source_of(tmp_path / "log", text), source_of(tmp_path / "log.gz", text, compressed=True)):
        for split_bytes in (1, 7, 64, 300, 10**6):
            for chunk_bytes in (1, 16, 4096):
                found = []
                for split in input_splits([source], split_bytes):
                    for offset, chunk, long_xxh3 in read_chunks(split, 8, chunk_bytes):
                        for line in chunk[:-1].split(b"\n"):
                            found.append((offset, line, long_xxh3))
                            offset += len(line) + 1
                assert found == expected


class CountingFile(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self.read_bytes += len(block)
        return block


@pytest.mark.parametrize("compressed", [False, True])
def test_a_line_of_many_splits_is_read_once_or_twice_and_never_held_whole(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"x\n" + b"y" * 20_000_000 + b"\nz\n"
    source, opened = source_of(tmp_path / "log", text), []
    source = dataclasses.replace(source, compressed=compressed)

    def opening(_: SourceFile) -> CountingFile:
        opened.append(CountingFile(text))
        return opened[-1]

    monkeypatch.setattr(SourceFile, "open", opening)
    tracemalloc.start()
    found = [lines for split in input_splits([source], 50_000) for lines in read_chunks(split, 100_000, 20_000)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(lines.offset, len(lines.text)) for lines in found] == [(0, 2), (2, (64 << 10) + 1), (20_000_003, 2)]
    assert sum(file.read_bytes for file in opened) < 2.1 * len(text)
    assert peak_bytes < 7_000_000


def test_a_gzip_file_is_one_split_with_offsets_in_the_uncompressed_file(tmp_path: Path) -> None:
    source = source_of(tmp_path / "log.gz", b"one\ntwo\nthree" * 50, compressed=True)
    splits = input_splits([source], split_bytes=4)
    assert len(splits) == 1
    assert [offset for offset, _ in lines_with_offsets(splits[0], 8)][:3] == [0, 4, 8]
    assert len(lines_with_offsets(splits[0], 8)) == 101


def test_files_gzip_files_and_directories_of_parts_are_found_in_the_order_of_the_log(tmp_path: Path) -> None:
    small_log().write(tmp_path / "plain")
    small_log().write(tmp_path / "gzip", compressed=True)
    small_log().write(tmp_path / "parts", num_parts=2)
    (tmp_path / "parts" / "sample_skeleton_test" / "_SUCCESS").touch()
    plain = find_sources(str(tmp_path / "plain"), with_actions=False)
    assert [(source.ordinal, source.table, source.period) for source in plain] == [
        (0, CONTEXT, "train"), (1, CONTEXT, "test"), (2, SKELETON, "train"), (3, SKELETON, "test"),
    ]  # fmt: skip
    assert all(source.compressed for source in find_sources(str(tmp_path / "gzip"), with_actions=False))
    parts = [source.name for source in find_sources(str(tmp_path / "parts"), with_actions=False)]
    assert parts[-2:] == ["sample_skeleton_test/part-000", "sample_skeleton_test/part-001"]


def refusal(directory: Path, with_actions: bool = False) -> str:
    with pytest.raises(InputError) as refused:
        find_sources(str(directory), with_actions)
    return str(refused.value)


def test_a_missing_directory_is_refused_with_the_files_that_belong_in_it(tmp_path: Path) -> None:
    assert "does not exist; give the directory that holds common_features_{train,test}.csv" in refusal(tmp_path / "no")
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(tmp_path / "file")


def test_a_missing_an_empty_and_a_doubled_table_are_each_named(tmp_path: Path) -> None:
    raw = small_log().write(tmp_path / "raw")
    (raw / "sample_skeleton_test.csv").rename(raw / "elsewhere.csv")
    assert "has no sample_skeleton_test.csv" in refusal(raw)
    (raw / "sample_skeleton_test.csv").touch()
    assert "sample_skeleton_test.csv is empty" in refusal(raw)
    (raw / "elsewhere.csv").rename(raw / "sample_skeleton_test.csv")
    (raw / "sample_skeleton_test.csv.gz").touch()
    assert "has both sample_skeleton_test.csv and sample_skeleton_test.csv.gz" in refusal(raw)


def test_an_action_log_is_asked_for_only_where_labels_need_it(tmp_path: Path) -> None:
    raw = small_log().write(tmp_path / "raw")
    find_sources(str(raw), with_actions=False)
    assert "has no actions_train.csv" in refusal(raw, with_actions=True)
    assert "labels.daction=[] does without" in refusal(raw, with_actions=True)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("sample_skeleton_train", b"1;0;0;0000000000000001;1;205\x021\x031.0"),
        ("sample_skeleton_train", b"1,0,0,0000000000000001,1,205:1:1.0"),
        ("sample_skeleton_train", b"1,0,0,0000000000000001,2,205\x021\x031.0;206\x025\x031.0"),
        ("common_features_test", b"0000000000000001\t1\t101\x021\x031.0"),
        ("common_features_test", b"\n\n"),
    ],
)
def test_a_file_with_other_separators_is_refused_with_what_was_seen(tmp_path: Path, table: str, line: bytes) -> None:
    log: RawLog = small_log()
    log.lines[table] = [line, line]
    message = refusal(log.write(tmp_path / "raw"))
    assert f"{table}.csv is no " in message
    assert ("only empty lines" if not line.strip() else repr(line[:10].decode())[1:-1]) in message


def test_some_bad_first_lines_do_not_make_a_file_of_another_kind(tmp_path: Path) -> None:
    log = small_log()
    log.lines["sample_skeleton_train"][:0] = [b"", b"broken", b"1,2,3"]
    assert find_sources(str(log.write(tmp_path / "raw")), with_actions=False)


def test_a_line_longer_than_what_is_looked_at_does_not_make_a_file_of_another_kind(tmp_path: Path) -> None:
    log = small_log()
    lines = log.lines["sample_skeleton_train"]
    lines[0] += b"\x01205\x021\x031.0" * 10_000
    assert find_sources(str(log.write(tmp_path / "one")), with_actions=False)
    log.lines["sample_skeleton_train"] = lines[:1]
    assert find_sources(str(log.write(tmp_path / "only")), with_actions=False)


def test_a_short_part_of_bad_lines_is_for_the_quarantine_but_a_long_one_is_another_file(tmp_path: Path) -> None:
    raw = small_log().write(tmp_path / "raw", num_parts=1)
    part = raw / "sample_skeleton_train" / "part-001"
    part.write_bytes(b"1,0,0,cut o")
    (raw / "sample_skeleton_train" / "part-002.gz").write_bytes(gzip.compress(b""))
    assert len(find_sources(str(raw), with_actions=False)) == 6
    part.write_bytes(b"user,item\n" * 100)
    assert "sample_skeleton_train/part-001 is no sample_skeleton log" in refusal(raw)
    part.write_bytes(b"1,0,0,cut o")
    (raw / "sample_skeleton_train" / "part-000").write_bytes(b"1,0,0,cut o")
    assert "sample_skeleton_train/part-000 is no sample_skeleton log" in refusal(raw)


def test_what_is_no_file_among_the_parts_is_named_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    raw = small_log().write(tmp_path / "raw", num_parts=2)
    parts = raw / "sample_skeleton_train"
    for hidden in ("_temporary", ".crc"):
        (parts / hidden).mkdir()
    (parts / "_SUCCESS").symlink_to("nothing")
    assert len(find_sources(str(raw), with_actions=False)) == 8
    (parts / "part-002").symlink_to("nothing")
    (parts / "day=3").mkdir()
    os.mkfifo(parts / "part-004")
    (parts / "part-005").symlink_to("part-000")
    expected = "holds what is no file: day=3 (a directory), part-002 (a link to nothing), part-004 (no regular file);"
    assert refusal(raw).startswith(f"{parts} {expected}")
    for name in ("part-002", "part-004"):
        (parts / name).unlink()
    (parts / "day=3").rmdir()
    assert len(find_sources(str(raw), with_actions=False)) == 9
    (parts / "part-003.bz2").write_bytes(b"BZh")
    assert "part-003.bz2 is compressed as no log may be; only .gz is read" in refusal(raw)


@pytest.mark.parametrize("kind", ["a link to nothing", "no regular file"])
def test_a_table_that_is_no_file_is_named_at_once(tmp_path: Path, kind: str) -> None:
    raw = small_log().write(tmp_path / "raw")
    path = raw / "sample_skeleton_test.csv"
    path.unlink()
    path.symlink_to("nothing") if kind == "a link to nothing" else os.mkfifo(path)
    assert f"{path} is {kind}; put the sample_skeleton log there." in refusal(raw)


def test_a_gzip_file_with_any_damage_is_named(tmp_path: Path) -> None:
    raw = small_log().write(tmp_path / "raw", compressed=True)
    path, draw = raw / "sample_skeleton_test.csv.gz", random.Random(3)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            for source in find_sources(str(raw), with_actions=False):
                list(read_chunks(InputSplit(source, 0, source.bytes), 1 << 20))
        except InputError as error:
            refused += str(path) in str(error)
        else:
            refused += gzip.decompress(damaged) is not None
    assert refused == 300


def unlabelled_log(directory: Path, suffix: str, *, labels: bytes = b"") -> Path:
    """The two tables of one period, or of none, whose impressions have `labels` in place of click and buy."""
    lines = small_log().lines
    directory.mkdir(exist_ok=True)
    (directory / f"common_features{suffix}.csv").write_bytes(b"\n".join([*lines["common_features_test"], b""]))
    rows = [line.split(b",", 3) for line in lines["sample_skeleton_test"]]
    text = b"".join(row[0] + b"," + labels + row[3] + b"\n" for row in rows)
    (directory / f"sample_skeleton{suffix}.csv").write_bytes(text)
    return directory


@pytest.mark.parametrize("labels", [b"", b",,", b"1,0,"])
@pytest.mark.parametrize("period", ["", "train", "test"])
def test_a_log_that_needs_no_labels_may_have_one_period_or_none(tmp_path: Path, period: str, labels: bytes) -> None:
    directory = unlabelled_log(tmp_path, f"_{period}" if period else "", labels=labels)
    found = find_sources(str(directory), with_actions=False, needs_labels=False)
    assert [(source.table, source.period) for source in found] == [(CONTEXT, period), (SKELETON, period)]
    with pytest.raises(InputError):
        find_sources(str(directory), with_actions=False)


def test_a_log_that_needs_no_labels_is_refused_without_impressions_or_contexts_or_with_both_kinds_of_names(
    tmp_path: Path,
) -> None:
    def error(directory: Path) -> str:
        with pytest.raises(InputError) as raised:
            find_sources(str(directory), with_actions=False, needs_labels=False)
        return str(raised.value)

    (tmp_path / "empty").mkdir()
    assert "has no sample_skeleton.csv; expected are sample_skeleton.csv and common_features.csv" in error(
        tmp_path / "empty"
    )
    assert "does not exist; give the directory that holds sample_skeleton.csv" in error(tmp_path / "nowhere")
    directory = unlabelled_log(tmp_path / "log", "")
    unlabelled_log(directory, "_test")
    assert "has sample_skeleton as well as sample_skeleton_test" in error(directory)
    for name in ("sample_skeleton_test.csv", "common_features.csv"):
        (directory / name).unlink()
    assert "has no common_features.csv (nor" in error(directory)
    (directory / "common_features.csv").write_bytes(b"some,other,columns,here\n")
    assert "is no common_features log: a line has 3 comma-separated columns" in error(directory)
