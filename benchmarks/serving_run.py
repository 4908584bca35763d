"""A run of Ali-CCP's shape without training: 23 fields, 3.2 million rows of tables, random weights. And requests to it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from benchmarks.feed import ALICCP
from jobs.entry import compose
from pipeline.dataset.manifest import MANIFEST, Manifest, ManifestField
from training.checkpoint.files import commit, prepare_folder
from training.checkpoint.meta import TOWERS_FILE, Checkpoint, Position, path_of, rank_file
from training.checkpoint.tensors import write_safetensors
from training.model.graph import Graph
from training.model.settings import allocated_dim
from training.model.towers import TowerStack
from training.run.dataset_copy import COPY
from training.run.run_folder import write_config
from training.run.settings import TrainSettings

LABELS = {"click": "made up", "daction": "made up", "conversion": "made up"}
_FIRST_ID, _ID_STEP = 1017, 3  # raw ids of four to seven digits, as in the log


def write_run(run: Path, *overrides: str, seed: int = 1, rows_divided_by: int = 1) -> TrainSettings:
    """Write a run of one checkpoint, with the dataset's copy that a run keeps."""
    random = np.random.default_rng(seed)
    settings = compose("train", TrainSettings, [f"data={run / 'nowhere'}", f"out={run}", *overrides])
    (run / COPY / "vocabulary").mkdir(parents=True)
    fields = []
    for name, (scope, arity, weighted, rows, _) in ALICCP.items():
        fields.append(_field(run / COPY, name, scope, arity, weighted, max(4, rows // rows_divided_by)))
    manifest = Manifest({}, "", (), tuple(fields), LABELS, (), {}, {})
    (run / COPY / MANIFEST).write_text(manifest.to_json())
    write_config(run, settings)
    tables: dict[str, torch.Tensor] = {}
    for entry in fields:
        dim = settings.embedding.dim_of(entry.name)
        weight = np.zeros((entry.num_rows, allocated_dim(dim)), np.float32)
        weight[:, :dim] = random.normal(0, 0.05, (entry.num_rows, dim)).astype(np.float32)
        tables[f"{entry.name}/0/weight"] = torch.from_numpy(weight)
    graph = Graph(settings.model.graph, list(LABELS))
    widths = [
        sum(settings.embedding.dim_of(entry.name) for entry in manifest.fields_of(scope))
        for scope in ("context", "impression")
    ]
    torch.manual_seed(seed)
    towers = TowerStack(graph.heads, widths[0], widths[1], settings.model)
    final = path_of(run, 1)
    prepare_folder(final.parent)
    staging = final.parent / ".staging.tmp"
    staging.mkdir()
    parts = {rank_file(0): tables, TOWERS_FILE: {name: value.detach() for name, value in towers.named_parameters()}}
    entries = {name: write_safetensors(staging / name, tensors) for name, tensors in parts.items()}
    commit(staging, Checkpoint(final, Position(0, 1), manifest.xxh3, tuple(parts)), 1, entries, keep=1)
    return settings


def _field(copy: Path, name: str, scope: str, arity: str, weighted: bool, num_rows: int) -> ManifestField:
    index = np.arange(2, num_rows, dtype=np.int32)
    path = f"vocabulary/{name}.parquet"
    table = pa.table(
        {"raw_id": _FIRST_ID + _ID_STEP * np.arange(len(index)), "index": index, "count": np.full(len(index), 9)}
    )
    pq.write_table(table, copy / path)
    return ManifestField(
        name, name, scope, arity, weighted, num_rows, path, xxhash.xxh3_64_hexdigest((copy / path).read_bytes())
    )


def draw_request(random: np.random.Generator, num_candidates: int, rows_divided_by: int = 1) -> dict[str, Any]:
    """Draw a context and its candidates as raw texts; a fiftieth of the ids is not in the vocabulary, some fields are missing."""
    return {
        "context": _record(random, "context", rows_divided_by),
        "candidates": [_record(random, "impression", rows_divided_by) for _ in range(num_candidates)],
    }


def _record(random: np.random.Generator, scope: str, rows_divided_by: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (of, arity, weighted, rows, mean) in ALICCP.items():
        if of != scope:
            continue
        count = 1 if arity == "one" else int(random.poisson(mean))
        places = np.minimum(random.zipf(1.3, count), int(1.02 * max(4, rows // rows_divided_by)))
        ids = [str(_FIRST_ID + _ID_STEP * int(place)) for place in places]
        if arity == "many":
            found[name] = ids
            if weighted:
                found[f"{name}__weight"] = [
                    round(float(weight), 5) for weight in np.log(2 + random.geometric(0.4, count))
                ]
        elif random.random() < 0.97:
            found[name] = ids[0]
    return found


def own_memory_mb() -> float:
    """Return the resident memory of this process."""
    with open(f"/proc/{os.getpid()}/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
