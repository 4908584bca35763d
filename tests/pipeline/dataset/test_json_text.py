"""JSON of another process: what is no plain JSON is refused at once, in one printable sentence."""

import time

import pytest

from pipeline.dataset.json_text import parse_json
from pipeline.errors import InputError


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "Expecting value"),
        (b"\xff{}", "'utf-8' codec can't decode byte 0xff"),
        ('{"a": 1}'.encode("utf-16"), "'utf-8' codec"),
        (b'{"a": NaN}', "the number NaN is none"),
        (b'{"a": [-Infinity]}', "the number -Infinity is none"),
        (b'{"a": 1e999}', "the number 1e999 is none"),
        (b'{"a": 9223372036854775808}', "the number 9223372036854775808 is none"),
        (b'{"a": -' + b"1" * 1_000_000 + b"}", "the number -11111111111111111111111… is none"),
        (b'{"a": 1, "b": {"\\u001b[2J": 1, "\\u001b[2J": 2}}', "stands twice in one object"),
        (b'{"a": "\\uD83D"}', "surrogates not allowed"),
        (b"[" * 1_000_000, "recursion"),
        (b'{"a":' * 1_000_000, "recursion"),
    ],
)
def test_what_is_no_plain_json_is_refused_at_once(text: bytes, problem: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(InputError, match=r"m.json is not valid JSON .*; write it again\.$") as caught:
        parse_json(text, "m.json", "write it again.")
    assert time.monotonic() - start_s < 2
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_plain_json_is_parsed() -> None:
    text = '{"a": [1, -9223372036854775807, 0.5, "\\ud83d\\ude00", "é", null, true]}'
    assert parse_json(text, "m.json", "") == {"a": [1, -9223372036854775807, 0.5, "😀", "é", None, True]}
    assert parse_json(text.encode(), "m.json", "") == parse_json(text, "m.json", "")
