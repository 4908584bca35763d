"""Small raw Ali-CCP logs, written inline by tests: lines, features, and a random log with dirt of every kind."""

import gzip
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT_ONES = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
CONTEXT_MANY = ("109_14", "110_14", "127_14", "150_14")
IMPRESSION_ONES = ("205", "206", "207", "216", "301")
IMPRESSION_MANY = ("210", "508", "509", "702", "853")
TABLES = ("common_features_train", "common_features_test", "sample_skeleton_train", "sample_skeleton_test")

Feature = tuple[str, int, str]


def key_of(number: int) -> str:
    """Return a context key."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def context_line(key: str, features: Sequence[Feature], count: int | None = None) -> bytes:
    """Format a line of common_features, without its line feed."""
    return f"{key},{len(features) if count is None else count},{joined(features)}".encode()


def impression_line(
    sample_id: int, click: int, buy: int, key: str, features: Sequence[Feature], count: int | None = None
) -> bytes:
    """Format a line of sample_skeleton, without its line feed."""
    number = len(features) if count is None else count
    return f"{sample_id},{click},{buy},{key},{number},{joined(features)}".encode()


def joined(features: Sequence[Feature]) -> str:
    """Format features as the log writes them."""
    return "\x01".join(f"{name}\x02{raw_id}\x03{weight}" for name, raw_id, weight in features)


@dataclass
class RawLog:
    """The lines of each table, in file order."""

    lines: dict[str, list[bytes]] = field(default_factory=lambda: {table: [] for table in TABLES})
    ends: Mapping[str, bytes] = field(default_factory=dict)  # table → what ends its lines, if not a line feed
    terminated: bool = True

    def write(self, directory: Path, compressed: bool = False, num_parts: int = 0) -> Path:
        """Write the files below `directory`: plain, gzip, or as directories of parts."""
        directory.mkdir(parents=True, exist_ok=True)
        for table, lines in self.lines.items():
            if num_parts:
                (directory / table).mkdir(exist_ok=True)
                step = -(-len(lines) // num_parts)
                for part in range(num_parts):
                    chosen = lines[part * step : (part + 1) * step]
                    (directory / table / f"part-{part:03d}").write_bytes(self._text(table, chosen))
            elif compressed:
                (directory / f"{table}.csv.gz").write_bytes(gzip.compress(self._text(table, lines)))
            else:
                (directory / f"{table}.csv").write_bytes(self._text(table, lines))
        return directory

    def _text(self, table: str, lines: Sequence[bytes]) -> bytes:
        end = self.ends.get(table, b"\n")
        return end.join(lines) + (end if self.terminated and lines else b"")


def small_log() -> RawLog:
    """Make two contexts of each period; one impression is bought without a click."""
    log = RawLog()
    for period in ("train", "test"):
        features = [("205", 1, "1.0"), ("702", 3, "0.5")]
        contexts = [context_line(key_of(number), [("101", number, "1.0")]) for number in (1, 2)]
        lines = [(1, 1, 1, 1), (2, 0, 1, 1), (3, 1, 0, 2), (4, 0, 0, 2)]
        log.lines[f"common_features_{period}"] = contexts
        log.lines[f"sample_skeleton_{period}"] = [
            impression_line(sample, click, buy, key_of(number), features) for sample, click, buy, number in lines
        ]
    return log


def random_log(seed: int, num_contexts: int = 60, dirty: bool = True, interleaved: bool = False) -> RawLog:
    """Make a log of both periods whose features come in any order, with missing and unknown fields and repeated values."""
    draw = random.Random(seed)
    log = RawLog()
    for period in ("train", "test"):
        contexts, impressions = [], []
        for number in range(num_contexts):
            key = key_of(number if period == "train" else number + num_contexts // 2)
            contexts.append(context_line(key, _features(draw, CONTEXT_ONES, CONTEXT_MANY, 12)))
            for _ in range(draw.choice([0, 1, 2, 3, 7, 40]) if number else 70):
                click = int(draw.random() < 0.3)
                buy = int(draw.random() < (0.3 if click else 0.03))
                features = _features(draw, IMPRESSION_ONES, IMPRESSION_MANY, 6)
                count = len(features) + int(draw.random() < 0.02)
                impressions.append(impression_line(len(impressions), click, buy, key, features, count))
        draw.shuffle(contexts)
        if interleaved:
            draw.shuffle(impressions)
        if dirty:
            contexts, impressions = (
                _dirty(draw, contexts, is_skeleton=False),
                _dirty(draw, impressions, is_skeleton=True),
            )
        log.lines[f"common_features_{period}"] = contexts
        log.lines[f"sample_skeleton_{period}"] = impressions
    return log


def shifted(log: RawLog, by: int) -> RawLog:
    """Return the log with another day's ids: all of them `by` larger."""

    def later(match: re.Match[bytes]) -> bytes:
        return b"\x02%d\x03" % (int(match[1]) + by)

    lines = {
        table: [re.sub(rb"\x02(\d+)\x03", later, line) for line in of_table] for table, of_table in log.lines.items()
    }
    return RawLog(lines)


def _features(draw: random.Random, ones: Sequence[str], many: Sequence[str], most: int) -> list[Feature]:
    chosen = [(name, draw.randrange(1, 30), "1.0") for name in ones if draw.random() < 0.9]
    weights = ("0.69315", "1.0", "2.70805", "1e-3", "2.9444389791664403", "-0.5", "17", ".5")
    chosen += [(draw.choice(many), draw.randrange(1, 40), draw.choice(weights)) for _ in range(draw.randrange(most))]
    if draw.random() < 0.1:
        chosen.append(("999", 7, "1.0"))
    if draw.random() < 0.1 and chosen:
        chosen.append(draw.choice(chosen))
    draw.shuffle(chosen)
    return chosen


def _dirty(draw: random.Random, lines: list[bytes], is_skeleton: bool) -> list[bytes]:
    """Mix damaged copies, duplicates and orphans into the lines: every reason of DESIGN §3.4."""
    out = []
    for line in lines:
        out.append(line)
        if draw.random() < 0.1:
            columns = line.split(b",")
            damages = [b"", line + b",1", line.replace(b"\x02", b"\x05", 1), line.replace(b"\x03", b"\x03x", 1)]
            damages += [line, line.replace(columns[-3], columns[-3].upper() + b"g"), b"\x00\xff,,"]
            if is_skeleton:
                damages += [b",".join([columns[0], b"2", *columns[2:]]), line.replace(columns[3], b"f" * 16)]
                damages += [b"1.5," + line.split(b",", 1)[1]]
            out.append(draw.choice(damages))
    return out
