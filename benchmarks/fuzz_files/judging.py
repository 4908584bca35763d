"""What a reader made of a damaged file: right (the same, refused, other data) or wrong."""

import random
import traceback
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz_files.damage import damage
from benchmarks.fuzz_files.inputs import ROOT
from benchmarks.fuzz_files.reading import Disagreement, Kind, Reader, Reading
from pipeline.errors import InputError

SAME, REFUSED, OTHER = "same", "refused", "other data"
DIFFERS, TRACEBACK, SENTENCE, HANG, CRASH = "differs", "traceback", "bad sentence", "hang", "crash"
OUTCOMES = (SAME, REFUSED, OTHER, DIFFERS, TRACEBACK, SENTENCE, HANG, CRASH)
WRONG = OUTCOMES[3:]
_MOST_LETTERS = 1500  # of one sentence


@dataclass(frozen=True)
class Verdict:
    """The outcome of one damage to one file: the worst of its readers'."""

    outcome: str
    reader: str
    why: str  # the sentence, or what is wrong


@dataclass(frozen=True)
class Undisturbed:
    """What the readers of a kind give without damage, and what they may fall back to if they say so."""

    readings: dict[str, Reading]
    fallbacks: dict[str, Reading]


def undisturbed(kind: Kind, folder: Path) -> dict[str, Reading]:
    """Read the files of `kind` as they are."""
    return {reader.__name__: reader(folder) for reader in kind.readers}


def choose(kinds: tuple[Kind, ...], seed: int) -> tuple[Kind, random.Random]:
    """Choose the kind of file of a mutation, and return the draw that all else about it follows from."""
    draw = random.Random(seed)
    return kinds[seed % len(kinds)], draw


def damaged_file(kind: Kind, folder: Path, draw: random.Random) -> tuple[str, str]:
    """Damage a file of `kind`; return its name and what was done."""
    files = sorted(folder.glob(kind.files))
    newest = [path for path in files if path.parent == files[-1].parent]  # of several checkpoints
    path = draw.choice(newest)
    done = damage(draw, path, kind.form)
    if kind.forge:
        kind.forge(folder, path)
    return str(path.relative_to(folder)), done


def judge(kind: Kind, folder: Path, before: Undisturbed) -> Verdict:
    """Read the damaged files with every reader of `kind`; return the worst verdict."""
    verdicts = [_judge(kind, reader, folder, before) for reader in kind.readers]
    return max(verdicts, key=lambda verdict: OUTCOMES.index(verdict.outcome))


def _judge(kind: Kind, reader: Reader, folder: Path, before: Undisturbed) -> Verdict:
    name = reader.__name__
    try:
        figures, said = reader(folder)
    except InputError as error:
        return of_sentences(name, [str(error)])
    except Disagreement as error:
        return Verdict(DIFFERS, name, str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Verdict(TRACEBACK, name, _where(error))
    expected, said_before = before.readings[name]
    if said != said_before:
        sentences = of_sentences(name, said)
        if sentences.outcome != REFUSED or figures in (expected, before.fallbacks[name][0]):
            return sentences
    if figures == expected:
        return Verdict(SAME, name, "")
    if kind.is_content:
        return Verdict(OTHER, name, "")
    return Verdict(DIFFERS, name, _first_difference(expected, figures))


def of_sentences(name: str, sentences: list[str]) -> Verdict:
    """Judge the sentences of a refusal: printable, on one line, neither a word nor a page."""
    for sentence in sentences:
        if not sentence.isprintable():
            return Verdict(SENTENCE, name, f"not printable: {sentence!r}"[:300])
        if not 20 <= len(sentence) <= _MOST_LETTERS:
            return Verdict(SENTENCE, name, f"{len(sentence)} letters: {sentence[:200]}")
        if any(words in sentence for words in ("Traceback", "object at 0x", "Error(")):
            return Verdict(SENTENCE, name, sentence[:300])
    return Verdict(REFUSED, name, " ".join(sentences))


def _where(error: BaseException) -> str:
    """Name the error and the innermost line of this code base."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    ours = [
        frame for frame in frames if "/benchmarks/" not in frame.filename and "/.venv/" not in frame.filename
    ] or frames
    frame = ours[-1]
    text = str(error).splitlines()[0][:100] if str(error) else ""
    return f"{type(error).__name__} at {Path(frame.filename).relative_to(ROOT)}:{frame.lineno}: {text}"


def _first_difference(expected: str, found: str) -> str:
    for one, other in zip(expected.splitlines(), found.splitlines(), strict=False):
        if one != other:
            at = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
            return f"{one[max(at - 40, 0) : at + 40]!r} is now {other[max(at - 40, 0) : at + 40]!r}"
    return f"{len(expected)} letters are now {len(found)}"
