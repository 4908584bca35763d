"""The byte kernel against its slow twin: random lines, and lines that hypothesis has damaged."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_checks import assert_kernel_equals_reference
from raw_log import random_log

from pipeline.aliccp import parse
from pipeline.aliccp.field_probe import names_of
from pipeline.chunks import line_columns, reasons
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.features.fields import Catalogue, catalogue

FIELDS = {
    "user": ("101", "context", "one"), "brands": ("127_14", "context", "many"),
    "a_long_name": ("a_name_longer_than_any", "context", "many"), "group": ("127", "context", "one"),
    "item": ("205", "impression", "one"), "shop": ("207", "impression", "one"), "position": ("301", "impression", "one"),
    "intention": ("210", "impression", "many"), "cross": ("702", "impression", "many"),
}  # fmt: skip
CATALOGUE: Catalogue = catalogue(FeaturesSettings({name: FieldSettings(*entry) for name, entry in FIELDS.items()}), 1)
NAMES = {scope: names_of(CATALOGUE, scope) for scope in ("context", "impression")}
GOOD = b"17,1,0,00c0ffee00000001,3,205\x0212\x031.0\x01702\x025\x030.69315\x01210\x027\x031.0"


def assert_agrees(text: bytes, is_skeleton: bool) -> None:
    """Alone, and with a good line behind it: the last bytes of a chunk are read another way than those before them."""
    behind = GOOD if is_skeleton else GOOD.split(b",", 3)[3]
    assert_kernel_equals_reference(text, is_skeleton, CATALOGUE)
    assert_kernel_equals_reference(text + b"\n" + behind, is_skeleton, CATALOGUE)
    if is_skeleton:
        for unlabelled in (text, without_labels(text, b""), without_labels(text, b",,")):
            assert_kernel_equals_reference(unlabelled, True, CATALOGUE, needs_labels=False)
            assert_kernel_equals_reference(unlabelled + b"\n" + behind, True, CATALOGUE, needs_labels=False)


def without_labels(text: bytes, instead: bytes) -> bytes:
    """The second and third column of each line, with the commas before them, give way to `instead`."""
    lines = [line.split(b",") for line in text.split(b"\n")]
    cut = [
        b",".join([columns[0] + instead, *columns[3:]]) if len(columns) > 3 else b",".join(columns) for columns in lines
    ]
    return b"\n".join(cut)


def test_the_kernel_reads_random_dirty_logs_as_the_reference_does() -> None:
    for seed in range(5):
        for table, lines in random_log(seed).lines.items():
            assert_agrees(b"\n".join(lines), table.startswith("sample_skeleton"))


FRAGMENTS = [
    b"\x01", b"\x02", b"\x03", b",", b"\n", b"\r\n", b"\r", b"\x00", b"-", b"+", b".", b"e5", b"1e-400", b"1e400",
    b"nan", b"inf", b"0x1p3", b"9223372036854775807", b"9223372036854775808", b"000000000000000000000000012",
    b"2.9444389791664403", b"3.4028235677973365e38", b"3.4028235677973366e38", b"205\x02", b"\xff", b"_", b" ",
    b"127_14\x021\x031", b"a_name_longer_than_any\x021\x031", b"b_name_longer_than_any\x021\x031", b"12345678901234567890123",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One to three good lines, with a few places overwritten, cut out or inserted into."""
    text = b"\n".join([GOOD] * draw(st.integers(1, 3)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 10])))
        text = text[:start] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3)) + text[stop:]
    return text


@settings(max_examples=800, deadline=None)
@given(damaged())
@example(b"\n\r\n\n")
@example(GOOD.replace(b"702\x02", b"702\x00\x02"))
@example(b"1,0,0,00c0ffee00000001,0,")
@example(b"-5,0,0,00c0ffee00000001,0,\r")
def test_the_kernel_and_the_reference_agree_on_damaged_lines(text: bytes) -> None:
    if text:
        assert_agrees(text, is_skeleton=True)
        contexts = b"\n".join(b",".join(line.split(b",")[3:]) for line in text.split(b"\n"))
        if contexts:
            assert_agrees(contexts, is_skeleton=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD, ""),
        (b"", "malformed_line"),
        (GOOD + b",", "malformed_line"),
        (b"x" + GOOD, "malformed_line"),
        (GOOD.replace(b",3,", b",three,"), "malformed_line"),
        (GOOD.replace(b",1,0,", b",1,2,"), "bad_label"),
        (GOOD.replace(b"c0ffee", b"C0FFEE"), "bad_context_key"),
        (GOOD.replace(b"00c0", b"c0"), "bad_context_key"),
        (GOOD.replace(b"\x02", b"", 1), "bad_feature"),
        (GOOD.replace(b"0.69315", b"0.69.315"), "bad_feature"),
        (GOOD.replace(b"0.69315", b"nan"), "bad_feature"),
        (GOOD.replace(b"\x0212\x03", b"\x02-12\x03"), "bad_feature"),
        (GOOD + b"\x01", "bad_feature"),
        # Several defects: the first in the order of REASONS.
        (GOOD.replace(b",1,0,", b",1,2,").replace(b"c0ffee", b"C0FFEE") + b",", "malformed_line"),
        (GOOD.replace(b",1,0,", b",1,2,").replace(b"c0ffee", b"C0FFEE"), "bad_label"),
        (GOOD.replace(b"c0ffee", b"C0FFEE") + b"\x01", "bad_context_key"),
    ],
)
def test_the_reason_of_a_bad_line(line: bytes, reason: str) -> None:
    parsed = parse.parse(line + b"\n", True, NAMES["impression"])
    assert reasons.REASONS[parsed.line_table[0, line_columns.REASON]] == reason


@pytest.mark.parametrize(
    ("labels", "reason", "needed"),
    [
        (b"1,0,", "", ""),
        (b"", "", "malformed_line"),
        (b",,", "", "bad_label"),
        (b"1,,", "", "bad_label"),
        (b",0,", "", "bad_label"),
        (b"1,", "malformed_line", "malformed_line"),
        (b",", "malformed_line", "malformed_line"),
        (b"1,2,", "bad_label", "bad_label"),
        (b"-,,", "bad_label", "bad_label"),
        (b"1,0,,", "malformed_line", "malformed_line"),
    ],
)
def test_labels_may_be_empty_or_not_there_where_none_are_needed(labels: bytes, reason: str, needed: str) -> None:
    line = GOOD.replace(b"1,0,", labels, 1) + b"\n"
    for needs_labels, expected in ((False, reason), (True, needed)):
        parsed = parse.parse(line, True, NAMES["impression"], needs_labels)
        assert reasons.REASONS[parsed.line_table[0, line_columns.REASON]] == expected
        assert len(parsed.id_V) == (0 if expected else 3)


def test_weights_are_the_nearest_double_rounded_to_float32() -> None:
    draw = random.Random(7)
    texts = [repr(draw.expovariate(1)) for _ in range(500)] + [f"{draw.random() * 10:.5f}" for _ in range(500)]
    texts += [f"{draw.randrange(10**17)}e{draw.randrange(-60, 20)}" for _ in range(500)]
    texts += ["1e-46", "-0", "+.5", "5.", "1E3", "0." + "0" * 400 + "1e400", "1" * 38, "0e999999999999"]
    line = GOOD[: GOOD.index(b"205")] + "\x01".join(f"702\x021\x03{text}" for text in texts).encode() + b"\n"
    parsed = parse.parse(line, True, NAMES["impression"])
    expected = np.array([np.float32(float(text)) for text in texts])
    np.testing.assert_array_equal(parsed.weight_V.view(np.int32), expected.view(np.int32))


def test_a_policy_turns_an_overlooked_defect_into_a_reason() -> None:
    mismatch, without_click = GOOD.replace(b",3,", b",4,"), GOOD.replace(b",1,0,", b",0,1,")
    parsed = parse.parse(b"\n".join([GOOD, mismatch, without_click, b""]), True, NAMES["impression"])
    parse.apply_policies(parsed.line_table, reject_mismatch=False, reject_without_click=False)
    assert parsed.line_table[:, line_columns.REASON].tolist() == [0, 0, 0]
    parse.apply_policies(parsed.line_table, reject_mismatch=True, reject_without_click=True)
    assert parsed.line_table[:, line_columns.REASON].tolist() == [0, reasons.COUNT_MISMATCH, reasons.WITHOUT_CLICK]
