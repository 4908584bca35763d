"""A first-time reader finds the answer to ten questions: the page that the navigation leads to, and the line that answers."""

import re
from pathlib import Path

import pytest
import yaml
from mkdocs.config import load_config

from jobs.listing import JOBS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: question → the page, the heading under which the answer stands, and what the answer has to say.
ANSWERS = {
    "How do I install it?": ("install.md", "Install", [r"make install"]),
    "How do I train on Ali-CCP, and where do I get it?": (
        "quickstart-aliccp.md",
        "With the real files",
        [r"https://tianchi\.aliyun\.com/dataset/408", r"4\.1 and 4\.7 GB", r"python -m jobs\.preprocess source=aliccp"],
    ),
    "How do I score new traffic?": (
        "score.md",
        "Score logs",
        [r"python -m jobs\.score run=RUN source=aliccp source\.path=TODAY"],
    ),
    "How do I add a field?": (
        "dataset.md",
        "Add a field",
        [
            r"category_strength: \{raw_id: \"508\", scope: impression, kind: bucketized",
            r"--config-dir mine features=with_strength",
        ],
    ),
    "Why was a line quarantined?": (
        "look.md",
        "Why a line was quarantined",
        [r"DATASET/quarantine", r"reason", r"\[The reasons\]\(dataset\.md#raw-lines\)"],
    ),
    "How do I resume a stopped run?": ("training.md", "Stop and resume", [r"Run the same command again"]),
    "How do I add a loss?": ("models.md", "A loss of your own", [r"LOSSES\[\"focal\"\] = focal", r"kind: focal"]),
    "How do I run it on Slurm?": ("clusters.md", "Slurm", [r"jobs\.submit cluster=slurm"]),
    "Is the probability calibrated?": (
        "evaluation.md",
        "Calibration in words, calibrators, and signs of a bad model",
        [r"p_ctcvr is too high", r"calibrator=isotonic"],
    ),
    "Which of two models is better?": ("evaluation.md", "Compare runs", [r"python -m jobs\.compare runs=\["]),
    "How do I run it every day?": ("pipeline.md", "Day after day", [r"python -m jobs\.pipeline .*days=\["]),
    "What is a daction?": ("concepts.md", "Funnel", [r"\*\*daction\*\* is a \*deterministic action\*"]),
    "Which datasets does a release read?": ("formats.md", "Format policy", [r"\| dataset \| `format_version`"]),
}


def section(page: Path, heading: str) -> str:
    """Return the text under a heading, down to the next heading of its level or above."""
    text = page.read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"{page.name} has no heading “{heading}”"
    rest = text[found.end() :]
    end = re.search(
        rf"^#{{1,{len(found[1])}}} ", re.sub(r"```.*?```", lambda code: " " * len(code[0]), rest, flags=re.S), re.M
    )
    return rest[: end.start()] if end else rest


@pytest.mark.parametrize("question", ANSWERS)
def test_the_page_answers_the_question_under_its_heading(question: str) -> None:
    name, heading, answers = ANSWERS[question]
    text = section(DOCS / name, heading)
    for answer in answers:
        line = next((number for number, line in enumerate(text.split("\n"), 1) if re.search(answer, line)), None)
        assert line is not None, f"{question} {name}, “{heading}” no longer says {answer}"
        assert line <= 40, f"{question} The answer is {line} lines below its heading"


@pytest.mark.parametrize("question", ANSWERS)
def test_the_page_is_two_clicks_away_from_the_readme(question: str) -> None:
    name = ANSWERS[question][0]
    readme = (ROOT / "README.md").read_text()
    first = {DOCS / found for found in re.findall(r"\]\(docs/([\w-]+\.md)", readme)}
    second = {page.parent / found for page in first for found in re.findall(r"\]\(([\w-]+\.md)", page.read_text())}
    assert DOCS / name in first | second


def test_the_navigation_has_the_order_of_a_user() -> None:
    nav = yaml.safe_dump(load_config(str(ROOT / "mkdocs.yml"))["nav"], sort_keys=False)
    order = [
        "install", "quickstart-aliccp", "quickstart-events", "concepts", "dataset", "training", "evaluation", "score",
        "clusters", "pipeline", "settings", "architecture", "papers", "benchmarks", "faq", "CONTRIBUTING",
    ]  # fmt: skip
    places = [re.search(rf"\b{name}\.md", nav).start() for name in order]  # type: ignore[union-attr]
    assert places == sorted(places)


def test_the_readme_has_a_line_for_each_job() -> None:
    table = (ROOT / "README.md").read_text().split("## The stages")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `jobs\.(\w+)`", table, re.M)) == {job.name for job in JOBS} - {"demo"}
