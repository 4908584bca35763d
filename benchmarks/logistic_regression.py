"""A linear baseline of the same fields: logistic regressions for CTR and CTCVR, to compare ESMM with.

    python -m benchmarks.logistic_regression DATASET

It uses nothing of training/ but the metrics: it reads the Parquet by itself, into sparse matrices, and fits by L-BFGS
until the loss stands still, with the penalty that is best on the validation split. Contexts are not joined to their
impressions here either: X w = (X_context w_context)[context_of_impression] + X_impression w_impression is the same
product. The train split is held in memory, 12 bytes a feature value.
"""

# Shapes: N bags of a scope, C contexts, B impressions, V values, D columns (the rows of all tables of a scope).

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from pipeline.dataset.kinds import NUMBER, VECTOR
from pipeline.dataset.manifest import Manifest, ManifestField, load_manifest
from pipeline.errors import InputError
from pipeline.locations import open_location
from training.evaluation.calibration import mean_log_loss
from training.evaluation.metrics import evaluate
from training.feed.numeric import squash, standardize

Array = NDArray[Any]

#: Penalties λ of Σ log loss + λ/2 |w|², of which validation chooses.
PENALTIES = (64.0, 16.0, 4.0)
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Design:
    """The features of a split, each context once, and its labels."""

    context: sp.csr_matrix  # [C, D]
    impression: sp.csr_matrix  # [B, D]
    context_of_impression_B: Array
    click_B: Array
    conversion_B: Array  # click and conversion

    @property
    def num_columns(self) -> int:
        """Columns of both scopes and the intercept."""
        return self.context.shape[1] + self.impression.shape[1] + 1

    def logit(self, weight: Array) -> Array:
        """Return logits [B] from a weight for each context column, each impression column, and the intercept."""
        context, impression, intercept = np.split(weight, [self.context.shape[1], self.num_columns - 1])
        return (self.context @ context)[self.context_of_impression_B] + self.impression @ impression + intercept

    def gradient(self, residual_B: Array) -> Array:
        """Return Xᵀ residual, in the order of `logit`'s weights."""
        residual_C = np.bincount(self.context_of_impression_B, residual_B, minlength=self.context.shape[0])
        return np.concatenate((self.context.T @ residual_C, self.impression.T @ residual_B, [residual_B.sum()]))


def read_design(dataset: str, manifest: Manifest, split: str) -> Design:
    """Read every row group of `split`, in manifest order."""
    filesystem, root = open_location(dataset)
    blocks, num_contexts = [], 0
    for file in manifest.files_of(split):
        with filesystem.open_input_file(f"{root.rstrip('/')}/{file.path}") as stream:
            parquet = pq.ParquetFile(stream)
            for number in range(parquet.num_row_groups):
                table = parquet.read_row_group(number).combine_chunks()
                blocks.append(design_of(table, manifest, first_context=num_contexts))
                num_contexts += table.num_rows
    return Design(
        sp.vstack([block.context for block in blocks], format="csr"),
        sp.vstack([block.impression for block in blocks], format="csr"),
        np.concatenate([block.context_of_impression_B for block in blocks]),
        np.concatenate([block.click_B for block in blocks]),
        np.concatenate([block.conversion_B for block in blocks]),
    )


def design_of(table: pa.Table, manifest: Manifest, first_context: int = 0) -> Design:
    """Convert one row group; its contexts are numbered from `first_context`."""
    impressions = table.column("impression_id").chunk(0)
    num_impressions_C = np.diff(impressions.offsets.to_numpy())
    click_B = _flat(table, "click").astype(bool)
    context = [_field_matrix(table, field, table.num_rows) for field in manifest.fields_of("context")]
    impression = [_field_matrix(table, field, len(click_B)) for field in manifest.fields_of("impression")]
    return Design(
        sp.hstack(context, format="csr"),
        sp.hstack(impression, format="csr"),
        first_context + np.repeat(np.arange(table.num_rows), num_impressions_C),
        click_B,
        click_B & _flat(table, "conversion").astype(bool),
    )


def _flat(table: pa.Table, name: str) -> Array:
    column = table.column(name).chunk(0)
    return (column.flatten() if pa.types.is_list(column.type) else column).to_numpy(zero_copy_only=False)


def _field_matrix(table: pa.Table, field: ManifestField, num_bags: int) -> sp.csr_matrix:
    """Return [N, rows of the field's table]: one-hot, or each bag's weights divided by the sum of their sizes.

    A numeric or dense field has a column for each of its inputs, scaled as for the towers.
    """
    if field.stored == VECTOR:
        vectors = _flat(table, field.name).reshape(-1, field.num_inputs)
        return sp.csr_matrix(np.where(np.isnan(vectors), 0.0, standardize(vectors, field)))
    if field.stored == NUMBER:
        return sp.csr_matrix(np.nan_to_num(squash(_flat(table, field.name), field))[:, None])
    index_V = _flat(table, field.name)
    if field.arity == "one":
        length_N = np.ones(num_bags, np.int64)
    elif field.scope == "context":
        length_N = np.diff(table.column(field.name).chunk(0).offsets.to_numpy())
    else:
        length_N = _flat(table, f"{field.name}__length")
    weight_V = _flat(table, f"{field.name}__weight").astype(np.float64) if field.weighted else np.ones(len(index_V))
    bag_V = np.repeat(np.arange(num_bags), length_N)
    size_N = np.bincount(bag_V, np.abs(weight_V), minlength=num_bags)
    pooled_V = np.divide(weight_V, size_N[bag_V], out=np.zeros(len(weight_V)), where=size_N[bag_V] > 0)
    offset_N = np.concatenate(([0], np.cumsum(length_N)))
    return sp.csr_matrix((pooled_V, index_V, offset_N), shape=(num_bags, field.num_rows))


def fit(design: Design, label_B: Array, penalty: float, start: Array | None = None) -> Array:
    """Minimise Σ log loss + `penalty`/2 |w|², without the intercept's, from `start` or from the base rate; return w."""
    rate = np.clip(label_B.mean(), 1e-7, 1 - 1e-7)
    if start is None:
        start = np.zeros(design.num_columns)
        start[-1] = np.log(rate / (1 - rate))
    penalties = np.full(design.num_columns, penalty)
    penalties[-1] = 0.0
    num_impressions = len(label_B)

    def objective(weight: Array) -> tuple[float, Array]:
        logit_B = design.logit(weight)
        loss = np.logaddexp(0, logit_B).sum() - logit_B[label_B].sum() + 0.5 * np.dot(penalties, weight**2)
        gradient = design.gradient(expit(logit_B) - label_B) + penalties * weight
        return loss / num_impressions, gradient / num_impressions

    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-8, "gtol": 1e-7}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def fit_best(train: Design, validation: Design, label: str) -> tuple[Array, float]:
    """Return the weights with the lowest log loss on `validation`, and their penalty. Each fit starts from the one before."""
    best, weight = (np.inf, np.empty(0), 0.0), None
    for penalty in PENALTIES:
        weight = fit(train, getattr(train, label), penalty, weight)
        loss = mean_log_loss(getattr(validation, label), expit(validation.logit(weight)))
        if loss is not None and loss < best[0]:
            best = (loss, weight, penalty)
    return best[1], best[2]


def baseline(dataset: str) -> dict[str, Any]:
    """Fit both regressions; return their metrics on the test split, the chosen penalties and the CPU seconds."""
    begin = time.process_time()
    manifest = load_manifest(dataset)
    train, validation = read_design(dataset, manifest, "train"), read_design(dataset, manifest, "validation")
    click, click_penalty = fit_best(train, validation, "click_B")
    conversion, conversion_penalty = fit_best(train, validation, "conversion_B")
    test = read_design(dataset, manifest, "test")
    predictions = {
        "click": test.click_B,
        "conversion": test.conversion_B,
        "p_ctr": expit(test.logit(click)),
        "p_ctcvr": expit(test.logit(conversion)),
    }
    chosen = {"ctr_penalty": click_penalty, "ctcvr_penalty": conversion_penalty}
    return {
        **evaluate(predictions),
        **chosen,
        "num_train_impressions": len(train.click_B),
        "cpu_s": time.process_time() - begin,
    }


def main() -> None:
    """Print the two AUCs with their log losses and penalties."""
    parser = argparse.ArgumentParser(description="Logistic regressions for CTR and CTCVR on a dataset.")
    parser.add_argument("data", help="a dataset of jobs.preprocess, with train, validation and test")
    try:
        result = baseline(parser.parse_args().data)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"logistic regression on {result['num_train_impressions']:,} train impressions, {result['cpu_s']:.1f} CPU s")
    for task, title in (("ctr", "CTR"), ("ctcvr", "CTCVR")):
        auc, loss, penalty = result[f"{task}_auc"], result[f"{task}_log_loss"], result[f"{task}_penalty"]
        shown = "undefined" if auc is None else f"{auc:.4f}"
        print(f"  {title:<6} test AUC {shown}   log loss {loss:.5f}   (penalty {penalty:g})")


if __name__ == "__main__":
    main()
