"""One split of a simulated log: draw, label and soil its chunks, in any process, and write them in order."""

# Shapes: B impressions of a chunk, L lines of a table in it, N contexts.

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.chunks.sources import CONTEXT, PERIODS, SKELETON
from pipeline.kernels.auc_histogram import AucHistogram
from pipeline.simulate.dirt import PlantedLine, plan_counts, plant
from pipeline.simulate.draw import CHUNK_IMPRESSIONS, draw_chunk
from pipeline.simulate.lines import LineLayout, context_keys, context_lines, impression_lines
from pipeline.simulate.oracle import (
    ACTION_NAMES,
    Calibration,
    Labels,
    OracleProbabilities,
    draw_labels,
    oracle_probabilities,
)
from pipeline.simulate.published_figures import MEAN_IMPRESSIONS_PER_CONTEXT
from pipeline.simulate.world import CHUNK, SimulatedWorld

#: Mean seconds from a click to the action: none, cart, wish.
_MEAN_DELAY_S = np.array([0.0, 600.0, 1800.0])
#: Kinds of context keys: the log's own, of impressions without a context, of contexts without impressions.
_OWN, _OF_NO_CONTEXT, _OF_NO_IMPRESSION = 0, 1, 2
_ORACLE_SCHEMA = pa.schema(
    [
        ("impression_id", pa.int64()),
        ("context_id", pa.string()),
        ("p_ctr", pa.float32()),
        ("p_daction", pa.float32()),  # given a click
        ("p_cvr", pa.float32()),  # given a click
    ]
)
_DIRT_SCHEMA = pa.schema([("file", pa.string()), ("offset", pa.int64()), ("reason", pa.string())])


@dataclass(frozen=True)
class LogPlan:
    """The world, layouts and settings that every chunk of a log shares."""

    world: SimulatedWorld
    calibration: Calibration
    context_layout: LineLayout
    impression_layout: LineLayout
    seed: int
    impressions: int  # of both splits
    actions: bool
    dirt: float


@dataclass(frozen=True)
class Split:
    """One of the two periods of a log."""

    number: int  # 0: train
    impressions: int
    first_id: int  # of its impressions

    def name(self, table: str, suffix: str) -> str:
        """Return the name of one of its files."""
        return f"{table}_{PERIODS[self.number]}.{suffix}"

    def spans(self) -> Iterator["Span"]:
        """Cut it into the spans of its chunks."""
        for number, start in enumerate(range(0, self.impressions, CHUNK_IMPRESSIONS)):
            yield Span(number, start, min(CHUNK_IMPRESSIONS, self.impressions - start))

    def planned_dirt(self, plan: LogPlan) -> dict[str, dict[str, int]]:
        """Count the dirty lines of the whole split, by table and reason."""
        return {
            SKELETON: plan_counts(SKELETON, plan.dirt, self.impressions),
            CONTEXT: plan_counts(CONTEXT, plan.dirt, round(self.impressions / MEAN_IMPRESSIONS_PER_CONTEXT)),
        }


class Span(NamedTuple):
    """The impressions of the split that a chunk holds: `size` of them, from `start`."""

    chunk: int
    start: int
    size: int


class ChunkContent(NamedTuple):
    """What one chunk adds to the files of its split."""

    lines: dict[str, bytes]  # by table
    dirt: dict[str, list[PlantedLine]]  # by table; offsets from the first byte of the chunk's lines
    action_lines: bytes
    oracle_table: pa.Table
    num_contexts: int
    oracle: OracleProbabilities
    labels: Labels


@dataclass
class SplitTally:
    """The counts and oracle AUCs of a split, as simulation.json records them."""

    impressions: int = 0
    contexts: int = 0
    clicks: int = 0
    dactions: int = 0
    conversions: int = 0
    dirty: dict[str, dict[str, int]] = field(default_factory=dict)
    ranks: dict[str, AucHistogram] = field(
        default_factory=lambda: {name: AucHistogram() for name in ("ctr_auc", "cvr_auc", "ctcvr_auc")}
    )

    def add(self, chunk: ChunkContent) -> None:
        """Count one chunk."""
        labels, oracle = chunk.labels, chunk.oracle
        self.impressions += len(labels.click)
        self.contexts += chunk.num_contexts
        self.clicks += int(labels.click.sum())
        self.dactions += int((labels.action > 0).sum())
        self.conversions += int(labels.conversion.sum())
        self.ranks["ctr_auc"].add(oracle.p_ctr, labels.click)
        self.ranks["cvr_auc"].add(oracle.p_cvr[labels.click], labels.conversion[labels.click])
        self.ranks["ctcvr_auc"].add(oracle.p_ctr * oracle.p_cvr, labels.conversion)

    def summary(self) -> dict[str, Any]:
        """Return the split's entry in simulation.json."""
        names = ("impressions", "contexts", "clicks", "dactions", "conversions")
        true_auc = {name: ranks.auc() for name, ranks in self.ranks.items()}
        return {**{name: getattr(self, name) for name in names}, "true_auc": true_auc, "dirty": self.dirty}


class SplitWriter:
    """The open files of one split. Chunks are added in order; `tally` counts what they hold."""

    def __init__(self, plan: LogPlan, folder: Path, split: Split) -> None:
        self.plan, self.folder, self.split = plan, folder, split
        self.tally = SplitTally()
        self._dirt: list[dict[str, Any]] = []
        self._open = ExitStack()

    def __enter__(self) -> "SplitWriter":
        def text(table: str) -> BinaryIO:
            return self._open.enter_context((self.folder / self.split.name(table, "csv")).open("wb"))

        self._tables = {SKELETON: text(SKELETON), CONTEXT: text(CONTEXT)}
        self._actions = text("actions") if self.plan.actions else None
        path = self.folder / self.split.name("truth", "parquet")
        self._oracle = self._open.enter_context(pq.ParquetWriter(path, _ORACLE_SCHEMA, compression="zstd"))
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def add(self, chunk: ChunkContent) -> None:
        """Append the next chunk to the files."""
        for table in (CONTEXT, SKELETON):
            name, stream = self.split.name(table, "csv"), self._tables[table]
            offset = stream.tell()
            self._dirt += [
                {"file": name, "offset": offset + line.offset, "reason": line.reason} for line in chunk.dirt[table]
            ]
            stream.write(chunk.lines[table])
        if self._actions is not None:
            self._actions.write(chunk.action_lines)
        self._oracle.write_table(chunk.oracle_table)
        self.tally.add(chunk)

    def finish(self) -> None:
        """Write what is known after the last chunk."""
        for table, planned in self.split.planned_dirt(self.plan).items():
            file = self.split.name(table, "csv")
            reasons = [dirty["reason"] for dirty in self._dirt if dirty["file"] == file]
            self.tally.dirty[file] = {reason: reasons.count(reason) for reason in planned}
        table = pa.Table.from_pylist(self._dirt, _DIRT_SCHEMA)
        pq.write_table(table, self.folder / self.split.name("dirt", "parquet"))


def make_chunk(plan: LogPlan, split: Split, span: Span) -> ChunkContent:
    """Draw, label and soil one chunk. It depends on its arguments alone, so processes may share the chunks of a split."""
    rng = np.random.default_rng([plan.seed, CHUNK, split.number, span.chunk])
    first_id = split.first_id + span.start
    chunk = draw_chunk(plan.world, rng, split.number, span.size)
    oracle = oracle_probabilities(plan.world, plan.calibration, chunk.scores)
    labels = draw_labels(rng, oracle)
    keys = _keys_of_lines(plan, split, _OWN, span.chunk, np.arange(len(chunk.sizes)))
    click_and_buy = np.stack([labels.click, labels.conversion]).astype(np.uint8)
    context_rotations = rng.integers(0, 1 << 16, len(chunk.sizes))
    impression_rotations = rng.integers(0, 1 << 16, span.size)
    contexts = context_lines(plan.context_layout, plan.world, chunk, keys, context_rotations)
    skeleton = impression_lines(
        plan.impression_layout, plan.world, chunk, keys, first_id, click_and_buy, impression_rotations
    )
    soil = np.random.default_rng([plan.seed, CHUNK, split.number, span.chunk, 1])  # leaves the good lines as they are
    soiled = {
        CONTEXT: _soiled(plan, split, CONTEXT, contexts, span, soil),
        SKELETON: _soiled(plan, split, SKELETON, skeleton, span, soil, ~labels.click),
    }
    return ChunkContent(
        {table: b"".join(pieces) for table, (pieces, _) in soiled.items()},
        {table: planted for table, (_, planted) in soiled.items()},
        _action_lines(rng, labels, first_id) if plan.actions else b"",
        _oracle_table(oracle, keys[chunk.context_of], first_id),
        len(chunk.sizes),
        oracle,
        labels,
    )


def _soiled(
    plan: LogPlan,
    split: Split,
    table: str,
    lines: tuple[np.ndarray, np.ndarray],
    span: Span,
    soil: np.random.Generator,
    unclicked_L: np.ndarray | None = None,
) -> tuple[Any, list[PlantedLine]]:
    """Plant the chunk's part of the dirty lines of one table; return the pieces of text, and the planted lines."""
    done, due = span.start, span.start + span.size
    counts = {
        reason: due * count // split.impressions - done * count // split.impressions
        for reason, count in split.planned_dirt(plan)[table].items()
    }
    kind = _OF_NO_CONTEXT if table == SKELETON else _OF_NO_IMPRESSION

    def free_key(line: int) -> bytes:
        return _keys_of_lines(plan, split, kind, span.chunk, np.array([line])).tobytes()

    free_id = split.first_id + span.start + plan.impressions
    return plant(table, *lines, counts, soil, free_id, free_key, unclicked_L)


def _keys_of_lines(plan: LogPlan, split: Split, kind: int, chunk: int, line_N: np.ndarray) -> np.ndarray:
    """Return context keys that no other kind, split, chunk or line has: uint8 [N, 16]."""
    head = (kind << 61) | (split.number << 60) | (chunk << 20)
    return context_keys(np.uint64(head) + line_N.astype(np.uint64), plan.world.tables.salt)


def _action_lines(rng: np.random.Generator, labels: Labels, first_id: int) -> bytes:
    """Write `sample_id,action,delay_seconds` for each daction."""
    acted = np.flatnonzero(labels.action)
    delay_s = 1 + np.floor(rng.exponential(1.0, len(acted)) * _MEAN_DELAY_S[labels.action[acted]]).astype(np.int64)
    rows = zip((first_id + acted).tolist(), labels.action[acted].tolist(), delay_s.tolist(), strict=True)
    return "".join(f"{sample_id},{ACTION_NAMES[action]},{delay}\n" for sample_id, action, delay in rows).encode()


def _oracle_table(oracle: OracleProbabilities, keys: np.ndarray, first_id: int) -> pa.Table:
    impressions = len(keys)
    offsets = np.arange(0, 16 * impressions + 1, 16, dtype=np.int32)
    context_id = pa.StringArray.from_buffers(impressions, pa.py_buffer(offsets), pa.py_buffer(keys.tobytes()))
    columns = [np.arange(first_id, first_id + impressions), context_id]
    columns += [probability.astype(np.float32) for probability in (oracle.p_ctr, oracle.p_daction, oracle.p_cvr)]
    return pa.table(columns, schema=_ORACLE_SCHEMA)
