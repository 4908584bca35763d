"""What a user holds: a model that scores requests of raw values, or rows that are encoded already."""

# Shapes: B impressions.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.checkpoint.meta import Checkpoint, steps_of
from training.serving.context_rows import Encoded, encode_rows
from training.serving.network import ServedNetwork
from training.serving.requests import RequestEncoder

EncodedColumns = Mapping[str, np.ndarray | Tensor]


class Scorer:
    """A trained model. Its methods change nothing in it, so threads may share one."""

    def __init__(
        self,
        run: Path,
        checkpoint: Checkpoint,
        manifest: Manifest,
        network: ServedNetwork,
        requests: RequestEncoder | None,
    ) -> None:
        self.run, self.checkpoint, self.manifest = run, checkpoint, manifest
        self.network = network.eval()
        self.requests = requests
        self._device = next(network.towers.parameters()).device

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is predicted, such as p_ctr, p_cvr, p_ctcvr; those of model.graph.outputs."""
        return tuple(self.network.graph.outputs)

    @property
    def step(self) -> int:
        """The number of steps after which the checkpoint was saved."""
        return steps_of(self.checkpoint.path)

    def predict(
        self,
        contexts: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        candidates: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
    ) -> dict[str, np.ndarray]:
        """Score the candidates of one context, or of several: output → float32 [B], in the order of the candidates.

        A context and a candidate are mappings from the name of a field to its raw value: an id, a list of ids (and
        `<field>__weight`, a list of weights), a number, a list of numbers; None or nothing where it is missing. With a
        list of contexts, `candidates` has a list for each. Raises InputError for a value that the log could not have.
        """
        many: Any = ([contexts], [candidates]) if isinstance(contexts, Mapping) else (contexts, candidates)
        assert self.requests is not None, "opened without vocabularies"
        encoded = self.requests.encode(*many)
        tensors = _as_tensors(encoded.contexts), _as_tensors(encoded.impressions)
        return self._score(*tensors, _as_tensor(encoded.context_of_impression))

    def predict_rows(
        self, contexts: EncodedColumns, impressions: EncodedColumns, context_of_impression: np.ndarray | Tensor
    ) -> dict[str, np.ndarray]:
        """Score encoded columns (training.serving): output → float32 [B].

        `context_of_impression` is int [B] and non-decreasing: the number of each impression's context. Raises InputError
        for a row outside its table, a missing column, and lengths that do not add up.
        """
        context_columns, impression_columns = _as_tensors(contexts), _as_tensors(impressions)
        index_B = _as_tensor(context_of_impression).long()
        num_contexts = int(index_B[-1]) + 1 if len(index_B) else 0
        if len(index_B) and (int(index_B[0]) < 0 or bool((index_B.diff() < 0).any())):
            raise InputError("context_of_impression has a number below 0 or below the one before it; sort by context.")
        self._check_rows("context", context_columns, num_contexts, at_least=True)
        self._check_rows("impression", impression_columns, len(index_B), at_least=False)
        return self._score(context_columns, impression_columns, index_B)

    def predict_table(self, table: pa.Table | pa.RecordBatch) -> dict[str, np.ndarray]:
        """Score context rows with the columns of a dataset's files (docs/dataset.md): output → float32 [B].

        The probabilities stand in the order of the rows, and in a row in that of its impressions. Labels are not needed.
        """
        encoded: Encoded = encode_rows(table, self.manifest.fields)
        return self.predict_rows(*encoded)

    def _score(
        self, contexts: dict[str, Tensor], impressions: dict[str, Tensor], index_B: Tensor
    ) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            placed = [
                {name: column.to(self._device) for name, column in columns.items()}
                for columns in (contexts, impressions)
            ]
            found = self.network(placed[0], placed[1], index_B.to(self._device))
            return {name: probability_B.cpu().numpy() for name, probability_B in found.items()}

    def _check_rows(self, scope: str, columns: Mapping[str, Tensor], num_rows: int, at_least: bool) -> None:
        """Raise InputError where an index would be read beyond its table, or a column has another length than the rows."""
        for entry in self.network.fields[scope]:
            wanted = [entry.name]
            if entry.arity == "many":
                wanted += [f"{entry.name}__length"] + [f"{entry.name}__weight"] * entry.weighted
            for name in wanted:
                if name not in columns:
                    raise InputError(f"The encoded column {name} of the {scope}s is missing; give one for every field.")
            values = columns[entry.name]
            length_N = columns[f"{entry.name}__length"] if entry.arity == "many" else None
            count = len(values if length_N is None else length_N)
            if count < num_rows if at_least else count != num_rows:
                raise InputError(
                    f"The encoded column {wanted[-1]} has {count} rows, and there are {num_rows} {scope}s."
                )
            if length_N is not None and (int(length_N.sum()) != len(values) or (count > 0 and int(length_N.min()) < 0)):
                raise InputError(f"{entry.name}__length does not add up to the {len(values)} values of {entry.name}.")
            if entry.weighted and len(columns[wanted[-1]]) != len(values):
                raise InputError(f"{wanted[-1]} has {len(columns[wanted[-1]])} weights for {len(values)} values.")
            if (
                entry.stored == INDEX
                and len(values)
                and not 0 <= int(values.min()) <= int(values.max()) < entry.num_rows
            ):
                raise InputError(
                    f"The encoded column {entry.name} has a row outside 0 to {entry.num_rows - 1}; encode it with the "
                    f"vocabularies of {self.run}."
                )


def _as_tensors(columns: EncodedColumns) -> dict[str, Tensor]:
    return {name: _as_tensor(column) for name, column in columns.items()}


def _as_tensor(column: np.ndarray | Tensor) -> Tensor:
    """Share the memory of `column`, or copy it where it cannot be written to: torch has no such tensors."""
    return column if isinstance(column, Tensor) else torch.from_numpy(np.require(column, requirements="W"))
