"""Check the prose of the pages: python -m docs.site.prose

Three rules, in prose.toml: a sentence is short; the field's word stands in place of a home-made one; and a list begins
behind an empty line, without which the site shows it as one paragraph. Code, tables' cells and headings have no sentences.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RULES = tomllib.loads((Path(__file__).parent / "prose.toml").read_text())
ITEM = re.compile(r"\s*(?:[-*] |\d+\. )")
# A period ends a sentence unless it stands in an abbreviation or a number.
END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bet al)(?<!\beq)(?<!\bvs)[.?!:][\"”')*]*(?=\s|$)")


class Finding(NamedTuple):
    """A place that breaks a rule."""

    line: int
    message: str


def pages() -> list[Path]:
    """List the pages that are checked."""
    names = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"]
    found = [*(ROOT / name for name in names), *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if page.relative_to(ROOT).as_posix() not in RULES["generated"]]


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield each paragraph and each item of a list, as one line, with the number of its first line."""
    number, lines, fenced = 0, [], ""
    in_item = False
    for at, line in enumerate([*text.split("\n"), ""], 1):
        fence = re.match(r"\s*(```+)", line)
        if fence:
            fenced = "" if fenced else fence[1]
        is_code = bool(fence or fenced) or (line.startswith("    ") and not in_item)
        is_item = bool(ITEM.match(line))
        ends = not line.strip() or is_code or is_item or line.startswith(("|", "#", "![", "<", "---"))
        if ends and lines:
            yield number, " ".join(lines)
            lines = []
        if is_item:
            in_item = True
        elif line.strip() and not line.startswith(" "):
            in_item = False
        if line.strip() and (is_item or not ends):
            number = number if lines else at
            lines.append(ITEM.sub("", line, count=1).strip() if is_item else line.strip())


def sentences(paragraph: str) -> list[str]:
    """Divide a paragraph; a code span is one word, and a link is its text."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
    plain = re.sub(r"`[^`]*`", "code", plain)
    return [part.strip() for part in END.split(plain) if part.strip()]


def findings(text: str, words_only: bool = False) -> Iterator[Finding]:
    """Yield what breaks a rule in the text of a page."""
    before, fenced = "", False
    for number, line in enumerate(re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", text).split("\n"), 1):
        fenced ^= line.lstrip().startswith("```")
        for pattern, instead in RULES["words"].items():
            for found in re.findall(pattern, line, re.IGNORECASE):
                yield Finding(number, f"“{found}”: write {instead}")
        if (
            not fenced
            and ITEM.match(line)
            and before.strip()
            and not ITEM.match(before)
            and not before.startswith("  ")
        ):
            yield Finding(number, "a list needs an empty line before it")
        before = line
    if words_only:
        return
    most = RULES["words_in_a_sentence"]
    for number, paragraph in blocks(text):
        for sentence in sentences(paragraph):
            length = len([word for word in sentence.split() if re.search(r"\w", word)])
            if length > most:
                yield Finding(number, f"{length} words, where {most} are the most: {sentence}")


def main() -> int:
    """Print what breaks a rule; the result is the exit status."""
    failed = False
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        found = findings(page.read_text(), name in RULES["words_only"])
        for finding in sorted(found):
            print(f"{name}:{finding.line}: {finding.message}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
