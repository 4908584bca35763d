"""The prose linter finds what it is for, and nothing in code."""

import pytest

from docs.site.prose import RULES, findings, sentences

LONG = " ".join(["word"] * 26)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A short sentence.", []),
        (f"{LONG}.", ["26 words, where 25 are the most"]),
        (f"A line\n{LONG}.", ["28 words, where 25 are the most"]),
        (f"- an item\n- {LONG}\n", ["26 words, where 25 are the most"]),
        (f"```\n{LONG}\n```", []),
        (f"    {LONG}", []),
        (f"| {LONG} |", []),
        (f"`{LONG}` is code.", []),
        ("The run goes on.", ["“goes on”: write resumes, or continues"]),
        ("`goes on` is code.", []),
        ("Some text\n- a list", ["a list needs an empty line before it"]),
        ("Some text\n\n- a list\n  continued\n- of two", []),
        ("```yaml\nkey:\n  - value\nother:\n- value\n```", []),
    ],
)
def test_a_rule_finds_its_fault_and_nothing_else(text: str, found: list[str]) -> None:
    assert [finding.message.split(": word")[0].split(": A line")[0] for finding in findings(text)] == found


def test_a_page_that_is_checked_for_words_alone_may_have_long_sentences() -> None:
    assert list(findings(f"{LONG}.", words_only=True)) == []
    assert len(list(findings("It is judged.", words_only=True))) == 1


def test_periods_in_numbers_and_abbreviations_end_no_sentence() -> None:
    assert sentences("See Ma et al. 2018, eq. 3, e.g. 0.5. Then stop.") == [
        "See Ma et al. 2018, eq. 3, e.g. 0.5",
        "Then stop",
    ]


def test_the_rules_name_pages_that_are_there() -> None:
    from docs.site.prose import ROOT

    for name in [*RULES["words_only"], *RULES["generated"]]:
        assert (ROOT / name).exists()
