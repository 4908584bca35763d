"""RUN → scorer: the settings, the checkpoint and the dataset's copy that a run keeps, read with every check of theirs."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.lookup_table import lookup_of
from pipeline.dataset.manifest import NUM_RESERVED_ROWS, Manifest, ManifestField, dataset_files
from pipeline.dataset.vocabulary_file import read_vocabulary
from pipeline.errors import InputError
from pipeline.locations import is_address
from training.checkpoint.files import find_checkpoint
from training.checkpoint.remote_run import CHECKPOINTS, local_run, print_warning
from training.checkpoint.settings import check_which
from training.checkpoint.tensors import SavedTensors, prediction_tensors
from training.model.bodies import check_body
from training.model.graph import Graph
from training.model.own_tables import tables_of
from training.model.precision import DTYPE_OF
from training.model.settings import EmbeddingSettings, allocated_dim
from training.model.towers import TowerStack
from training.run.dataset_copy import check_dataset, dataset_of
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings
from training.serving.network import ServedNetwork
from training.serving.requests import RequestEncoder
from training.serving.scorer import Scorer


def open_scorer(
    run: str | os.PathLike[str], which: str = "newest", device: str = "cpu", takes_raw_values: bool = True
) -> Scorer:
    """Load the checkpoint `which` (newest, best or step-N) of `run` onto `device`: cpu or cuda. Its average scores.

    A run at an address is copied to this host's scratch space until the process ends. One that does not take raw values needs no memory for the vocabularies, and has no `predict`. Raises InputError where there is no such run, checkpoint or device, or a file is damaged.
    """
    check_which(which, "checkpoint")
    target = _checked_device(device)
    folder = local_run(os.fspath(run), "run", which)
    settings = load_settings(folder)
    location, manifest = dataset_of(folder, settings.data)
    found = find_checkpoint(folder, which, print_warning)
    if found is None:
        raise InputError(f"run={folder} has no whole checkpoint yet; train it to the end of an epoch first.")
    check_dataset(found, manifest, location)
    network = build_network(settings, manifest, prediction_tensors(found)).to(target)
    requests = RequestEncoder(manifest, lookup_of(read_ids(location, manifest))) if takes_raw_values else None
    if is_address(os.fspath(run)):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # the tensors are in memory
    return Scorer(folder, found, manifest, network, requests)


def build_network(settings: TrainSettings, manifest: Manifest, saved: SavedTensors) -> ServedNetwork:
    """Build the network of a run from its saved tensors."""
    settings.embedding.check_fields(manifest.fields)
    graph = Graph(settings.model.graph, list(manifest.labels))
    check_body(settings.model.body, graph)
    tables = {
        entry.name: _table(entry, settings.embedding, saved)
        for entry in tables_of(manifest.fields_of(stored=INDEX), settings.model.num_copies(len(graph.heads)))
    }
    towers = _towers(settings, manifest, graph, tables, saved)
    pooling = settings.embedding.pooling_of(manifest.fields)
    return ServedNetwork(manifest.fields, pooling, tables, towers, graph, DTYPE_OF[settings.precision])


def _table(entry: ManifestField, embedding: EmbeddingSettings, saved: SavedTensors) -> Tensor:
    """Read the used columns of a table: float32 [rows, width]."""
    dim = embedding.dim_of(entry.name)
    saved.check_like(entry.name, "weight", torch.empty((entry.num_rows, allocated_dim(dim)), device="meta"))
    if saved.num_rows(entry.name, "weight") != entry.num_rows:
        raise saved.damage(
            f"it has {saved.num_rows(entry.name, 'weight')} rows of {entry.name}/weight, and its dataset {entry.num_rows}"
        )
    table = torch.empty((entry.num_rows, dim))
    for start, block in saved.blocks(entry.name, "weight", 0, entry.num_rows):
        table[start : start + len(block)] = block[:, :dim]
    return table


def _towers(
    settings: TrainSettings, manifest: Manifest, graph: Graph, tables: Mapping[str, Tensor], saved: SavedTensors
) -> TowerStack:
    widths = {
        scope: manifest.num_inputs(scope)
        + sum(tables[entry.name].shape[1] for entry in manifest.fields_of(scope, INDEX))
        for scope in ("context", "impression")
    }
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        towers = TowerStack(graph.heads, widths["context"], widths["impression"], settings.model)
    for name, parameter in towers.named_parameters():
        parameter.data = saved.tower(name, parameter.shape, parameter.dtype)
    return towers.requires_grad_(False)


@dataclass(frozen=True)
class FieldIds:
    """The ids of a field in the order of their index, from 2; none where it has no vocabulary."""

    id_N: np.ndarray
    hash_buckets: int

    @property
    def num_rows(self) -> int:
        """Rows of a table for these ids."""
        return (self.hash_buckets or len(self.id_N)) + NUM_RESERVED_ROWS


def read_ids(location: str, manifest: Manifest) -> list[FieldIds]:
    """Read the ids of every field, in the order of the manifest. Raises InputError for a vocabulary that is damaged."""
    files = dataset_files(location, "restore the file, or train the run again.")
    found = []
    for entry in manifest.fields:
        id_N = np.empty(0, np.int64)
        if entry.vocabulary:
            id_N = read_vocabulary(files, entry)["raw_id"].to_numpy()
        found.append(FieldIds(id_N, entry.hash_buckets))
    return found


def _checked_device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise InputError(f"device={name} is not one of cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda needs a GPU, and torch finds none on this host; use device=cpu.")
    return torch.device(name)
