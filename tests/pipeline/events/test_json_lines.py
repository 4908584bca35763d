"""JSON lines: a line is a row or is rejected whole, whatever stands in it, and values are what Python's json reads there."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.events.json_lines import LineParser
from pipeline.passes.job import Job
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
COLUMNS = {"id": "one", "user": "one", "tags": "many"}
PARSER = LineParser(COLUMNS, "|", ("", "none"))


def parsed(*lines: bytes) -> list[dict[str, Any]]:
    columns, rejected = PARSER.parse(lines)
    return pa.RecordBatch.from_arrays([*columns, rejected], [*COLUMNS, "_corrupt"]).to_pylist()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id": 7, "user": "ada", "tags": ["x", 2, null, true]}', ("7", "ada", ["x", "2", None, "true"])),
        (b' {"id": 12345678.0, "user": 1e3} \r', ("12345678.0", "1e3", None)),
        (b'{"id": NaN, "user": -Infinity, "tags": []}', ("NaN", "-Infinity", [])),
        (b'{"id": 123456789012345678901234567890, "user": false, "more": {"deep": [1]}}', ("123456789012345678901234567890", "false", None)),
        (b'{"tags": "a|b||"}', (None, None, ["a", "b", ""])),
        (b'{"tags": "a|b|"}', (None, None, ["a", "b"])),
        (b'{"tags": "none"}', (None, None, None)),
        (b'{"tags": 5}', (None, None, ["5"])),
        (b'{"id": 1, "id": 2}', ("2", None, None)),
        (b'{"id": "[1]", "user": "\\u00fc\\ud83d\\ude00"}', ("[1]", "ü😀", None)),
        (b"{}", (None, None, None)),
    ],
)  # fmt: skip
def test_a_value_is_the_text_that_the_line_has_for_it(line: bytes, expected: tuple[Any, ...]) -> None:
    assert parsed(line) == [dict(zip([*COLUMNS, "_corrupt"], [*expected, None], strict=True))]


NO_ROWS = [
    b"[]", b'[{"id": 1}]', b'[{"id": 1}, {"id": 2}]', b'{"id": 1}{"id": 2}', b'{"id": 1}, {"id": 2}', b'{"id": 1},', b'{"id": 1}}',
    b"null", b"7", b'"id"', b"{", b'{"id": 1', b'{"id" 1}', b"{'id': 1}", b'{"id": 007}', b'{"id": "a\tb"}', b'{"id": "\xff"}', b"\xfe\xff",
    b'{"id": [1]}', b'{"user": {"id": 1}}', b'{"tags": {"a": 1}}', b'{"tags": ["a", ["b"]]}', b'{"tags": [{"a": 1}]}', b'{"id": "\\ud83d"}',
    b'{"id": ' + b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("line", NO_ROWS)
def test_a_line_that_is_no_object_of_plain_values_is_one_row_without_values_and_kept_whole(line: bytes) -> None:
    whole = {"id": None, "user": None, "tags": None, "_corrupt": line}
    good = {"id": "1", "user": None, "tags": None, "_corrupt": None}
    assert parsed(b'{"id": 1}', line, b'{"id": 1}') == [good, whole, good]


def test_blank_lines_are_no_rows() -> None:
    assert parsed(b"", b" \t\r") == []


@pytest.mark.usefixtures("spark")
def test_every_line_of_json_is_a_row_of_the_audit_and_its_bytes_are_in_quarantine(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    shown = [b'{"impression_id": %d, "timestamp": %d, "user_id": "u", "item_id": 1, "page_view_id": "v"}' % (n, n) for n in (1, 2)]  # fmt: skip
    acted = [b"[]", b'{"timestamp": 9000, "user_id": "u", "item_id": 1, "action": "click"}', b"", b"[{}, {}]"]
    bad = [line for line in NO_ROWS if len(line) < 1000 and b'"tags"' not in line and b'"user"' not in line]
    bad = [line.replace(b'"id"', b'"user_id"') for line in bad]
    (tmp_path / "raw").mkdir()
    with gzip.open(tmp_path / "raw/impressions.gz", "wb") as stream:
        stream.write(b"\xef\xbb\xbf" + b"\r\n".join([shown[0], b"", *bad, shown[1]]))
    (tmp_path / "raw/actions").write_bytes(b"\n".join(acted))
    settings = preprocess_settings(
        tmp_path / "raw", tmp_path / "out", "source=events", "features=shop", "vocabulary.min_count=1", "labels.daction=[]",
        "source.events.impressions.path=impressions.gz", "source.events.impressions.format=jsonl", "source.events.actions.format=jsonl",
        "source.events.boundaries=[0,100,200,300]", "source.events.actions_end=900000",
        "~features.fields.user_city", "~features.fields.user_categories", "~features.fields.item_category", "~features.fields.item_tags",
    )  # fmt: skip
    manifest = preprocess(settings)
    assert manifest.totals["train"]["impressions"] == len(shown)
    events = manifest.audit["events"]
    assert events["impressions"]["read"] == len(shown) + len(bad)
    assert (events["actions"]["read"], events["actions"]["malformed"]) == (3, 2)
    rejected = [pq.read_table(tmp_path / "out" / file["path"]) for file in manifest.audit["quarantine"]]
    found = [(row["line"], row["reason"]) for table in rejected for row in table.to_pylist()]
    assert Counter(found) == Counter((line, "malformed_line") for line in bad)


def test_a_column_that_has_lists_or_objects_alone_is_refused_before_spark_starts_but_not_for_a_line_or_two(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    lines = [{"timestamp": 1, "user_id": "u", "item_id": 1, "action": "click", "page_view_id": "v", "impression_id": 1}]
    overrides = ["source=events", "features=shop", "labels.daction=[]", "source.events.boundaries=[0,100,200,300]",
                 "source.events.impressions.format=jsonl", "source.events.actions.format=jsonl"]  # fmt: skip
    overrides += [f"~features.fields.{name}" for name in ("user_city", "user_categories", "item_category", "item_tags")]

    def job(*users: Any) -> Job:
        text = "".join(json.dumps(lines[0] | {"user_id": user}) + "\n" for user in users)
        (tmp_path / "impressions").write_bytes(b'{"more": "\xff"}\n' + text.encode())
        (tmp_path / "actions").write_text(json.dumps(lines[0]))
        return Job.of(preprocess_settings(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", *overrides))

    job(["u"], {"id": 1}, None, "u")
    for nested, kind in ((["u"], "list<.*>"), ({"id": 1}, "struct<.*>")):
        with pytest.raises(
            InputError, match=f"impressions has {kind} in the column 'user_id', where one value is needed"
        ):
            job(nested, None, nested)
