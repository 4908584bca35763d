"""CSV in tasks: every row is that of the slow reading, wherever blocks end and splits begin."""

import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from references.csv_rows import Row, read_csv

from pipeline.chunks.sources import SourceFile
from pipeline.config.tables import TableSettings, check_table
from pipeline.errors import InputError
from pipeline.events import csv_rows, text_input
from pipeline.events.csv_rows import CsvParser, header_of
from pipeline.events.text_input import TextSplit

COLUMNS = ("a", "b", "c")


def file_of(path: Path, text: bytes) -> SourceFile:
    path.write_bytes(text)
    return SourceFile(0, path.name, str(path), len(text), "impressions", "", path.suffix in (".gz", ".zst", ".bz2"))


def rows_of(parser: CsvParser, split: TextSplit, columns: tuple[str, ...] = COLUMNS) -> list[Row]:
    found: list[Row] = []
    for arrays, rejected in parser.parse(split, columns):
        for array in arrays:
            array.validate(full=True)
        for values, line in zip(
            zip(*(array.to_pylist() for array in arrays), strict=True), rejected.to_pylist(), strict=True
        ):
            assert line is None or set(values) == {None}
            found.append(list(values) if line is None else line)
    return found


def parser_of(**settings: Any) -> CsvParser:
    table = TableSettings(format="csv", header=[*COLUMNS], **settings)
    check_table("source.events.impressions", table)
    return CsvParser.of(table, COLUMNS)


PIECES = [
    b"a",
    b"7",
    b" ",
    b",",
    b",",
    b",",
    b'"',
    b'"',
    b'""',
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b"\xff",
    b"\xc3\xbc",
    b"\\",
    b"|",
]


def random_text(draw: random.Random) -> bytes:
    """Draw rows of which most are right, with pieces of any kind between them."""
    text = b""
    for _ in range(draw.randrange(12)):
        fields = [
            draw.choice((b"x", b"", b"12", b'"q,1"', b'"two\nlines"', b'"say ""hi"""', b'""', b"\xc3\xbc"))
            for _ in range(3)
        ]
        text += b",".join(fields) + draw.choice((b"\n", b"\n", b"\r\n", b"\r"))
        text += b"".join(draw.choices(PIECES, k=draw.choice((0, 0, 0, 1, 3, 6))))
    return text


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_the_slow_reading_whatever_the_blocks_and_splits(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    parser = parser_of()
    seen = {"row": 0, "rejected": 0}
    for number in range(150):
        text = random_text(draw)
        source = file_of(tmp_path / f"{number}.csv", text)
        expected = read_csv(text, 3)
        for row in expected:
            seen["rejected" if isinstance(row, bytes) else "row"] += 1
        assert rows_of(parser, TextSplit(source, 0)) == expected, text
        with patch.object(text_input, "TEXT_BLOCK_BYTES", draw.randrange(1, 30)):
            blocks = text_input.TEXT_BLOCK_BYTES
            with patch.object(
                csv_rows, "blocks_of", lambda split, encoding, n=blocks: text_input.blocks_of(split, encoding, n)
            ):
                assert rows_of(parser, TextSplit(source, 0)) == expected, (text, blocks)
                starts = parser.row_starts(TextSplit(source, 0), 3, draw.randrange(1, 40))
        splits = zip(starts, [*starts[1:], None], strict=True)
        assert [
            row for start, end in splits for row in rows_of(parser, TextSplit(source, 0, start, end))
        ] == expected, text
    assert min(seen.values()) > 300


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({"delimiter": "\t"}, b'1\t"a\tb"\t3\n', [["1", "a\tb", "3"]]),
        ({"delimiter": "tab"}, b"1\t\t3", [["1", None, "3"]]),
        ({"delimiter": "||"}, b'1||a|b||3\n1||"x||y"||3\n', [["1", "a|b", "3"], ["1", "x||y", "3"]]),
        ({"delimiter": "\\x01"}, b"1\x01a,b\x013\n", [["1", "a,b", "3"]]),
        ({"quote": "'"}, b"1,'a,''b',\"3\n", [["1", "a,'b", '"3']]),
        ({"quote": None}, b'1,"a,"b\n', [["1", '"a', '"b']]),
        ({"escape": "\\"}, b'1,"5\\" screen, \\\\ flat",3\n', [["1", '5" screen, \\ flat', "3"]]),
        ({"escape": "\\"}, b"1,a\\,3\n", [["1", "a\\", "3"]]),
        ({"encoding": "gbk"}, "1,商品,品牌\n".encode("gbk") + b"2,\xff,x\n3,a,b\n", [["1", "商品", "品牌"], b"2,\xff,x", ["3", "a", "b"]]),
        ({"encoding": "latin-1"}, "1,é,ü\n".encode("latin-1"), [["1", "é", "ü"]]),
        ({"encoding": "utf-16"}, "1,é,ü\n".encode("utf-16"), [["1", "é", "ü"]]),
        ({"encoding": "UTF8"}, b"\xef\xbb\xbf1,a,b\n", [["1", "a", "b"]]),
        ({}, b'1,"",\n', [["1", "", None]]),
        ({}, b'1,5" screen,3\n1,"5" screen,3\n', [["1", '5" screen', "3"], b'1,"5" screen,3']),
        ({}, b'1,"open,3\n2,a,b\n3,"c",d\n4,e,f', [b'1,"open,3', ["2", "a", "b"], ["3", "c", "d"], ["4", "e", "f"]]),
        ({}, b"\n\n 	\n1,2,3\n\n", [["1", "2", "3"]]),
    ],
)  # fmt: skip
def test_a_dialect(tmp_path: Path, settings: dict[str, Any], text: bytes, expected: list[Row]) -> None:
    assert rows_of(parser_of(**settings), TextSplit(file_of(tmp_path / "f.csv", text), 0)) == expected


def test_an_open_quote_takes_no_more_than_a_bounded_row(tmp_path: Path) -> None:
    text = b'1,"open,3\n' + b"2,a,b\n" * 100
    with (
        patch.object(csv_rows, "MOST_ROW_BYTES", 60),
        patch.object(csv_rows, "blocks_of", lambda split, encoding: text_input.blocks_of(split, encoding, 50)),
    ):
        found = rows_of(parser_of(), TextSplit(file_of(tmp_path / "f.csv", text), 0))
    assert found == [b'1,"open,3'] + [["2", "a", "b"]] * 100


def test_another_encoding_than_said_is_one_sentence(tmp_path: Path) -> None:
    source = file_of(tmp_path / "f.csv", b"1,a,b")
    with pytest.raises(InputError, match=r"f.csv is not in the encoding utf-16 \(.*\); correct the encoding"):
        rows_of(parser_of(encoding="utf-16"), TextSplit(source, 0))


def test_columns_are_found_by_name_in_any_order_and_a_header_is_no_row(tmp_path: Path) -> None:
    source = file_of(tmp_path / "f.csv", b'\xef\xbb\xbf\n"c",,a,"b\nb"\n3,x,1,2\n')
    table = TableSettings(format="csv")
    header = header_of(TextSplit(source, 0), table)
    assert header == ["c", "", "a", "b\nb"]
    parser = CsvParser.of(table, ("a", "c"))
    assert rows_of(parser, TextSplit(source, 0), tuple(header)) == [["1", "3"]]


def lines(source: SourceFile, starts: list[int]) -> list[bytes]:
    splits = zip(starts, [*starts[1:], None], strict=True)
    return [
        line
        for start, end in splits
        for block in text_input.whole_lines(TextSplit(source, 0, start, end), "utf-8")
        for line in block.split(b"\n")
    ]


def test_every_line_is_in_one_split(tmp_path: Path) -> None:
    draw = random.Random(5)
    for number in range(200):
        text = b"\n".join(b"x" * draw.randrange(6) for _ in range(draw.randrange(9)))
        text = draw.choice((b"", b"\xef\xbb\xbf")) + text + draw.choice((b"", b"\n"))
        source = file_of(tmp_path / f"{number}", text)
        starts = [0, *sorted(draw.sample(range(1, len(text)), min(3, len(text) - 1)))] if len(text) > 1 else [0]
        with patch.object(text_input, "TEXT_BLOCK_BYTES", draw.randrange(1, 9)):
            found = [line for line in lines(source, starts) if line]
        assert found == [line for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line], (text, starts)
