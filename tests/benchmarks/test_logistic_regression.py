"""The linear baseline: its sparse matrices against a loop over the rows, its fit against scikit-learn's."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from tiny_dataset import write_tiny_dataset

from benchmarks.logistic_regression import baseline, fit, read_design


def joined_by_a_loop(path, manifest, split):
    """Dense [B, D]: for each impression, its context's columns and then its own, value by value."""
    width = {field.name: field.num_rows for field in manifest.fields}
    rows, clicks = [], []
    for file in manifest.files_of(split):
        for row in pq.read_table(path / file.path).to_pylist():
            place = {field.name: 0 for field in manifest.fields}
            for number, click in enumerate(row["click"]):
                parts = []
                for field in (*manifest.fields_of("context"), *manifest.fields_of("impression")):
                    part = np.zeros(width[field.name])
                    if field.arity == "one":
                        part[row[field.name] if field.scope == "context" else row[field.name][number]] = 1
                        parts.append(part)
                        continue
                    length = len(row[field.name])
                    if field.scope == "impression":
                        length = row[f"{field.name}__length"][number]
                    begin = place[field.name] if field.scope == "impression" else 0
                    ids = row[field.name][begin : begin + length]
                    weights = row[f"{field.name}__weight"][begin : begin + length] if field.weighted else [1.0] * length
                    for index, weight in zip(ids, weights, strict=True):
                        part[index] += weight / sum(weights)
                    if field.scope == "impression":
                        place[field.name] += length
                    parts.append(part)
                rows.append(np.concatenate(parts))
                clicks.append(click)
    return np.array(rows), np.array(clicks, bool)


def test_contexts_and_impressions_give_the_joined_matrix(tmp_path):
    manifest = write_tiny_dataset(tmp_path, num_contexts=60)
    joined, clicks = joined_by_a_loop(tmp_path, manifest, "train")
    design = read_design(str(tmp_path), manifest, "train")
    whole = sp.hstack([design.context[design.context_of_impression_B], design.impression]).toarray()
    np.testing.assert_allclose(whole, joined, rtol=1e-6)
    np.testing.assert_array_equal(design.click_B, clicks)
    rng = np.random.default_rng(0)
    weight, residual = rng.normal(size=design.num_columns), rng.normal(size=len(clicks))
    np.testing.assert_allclose(design.logit(weight), joined @ weight[:-1] + weight[-1], rtol=1e-6, atol=1e-9)
    expected = np.append(joined.T @ residual, residual.sum())
    np.testing.assert_allclose(design.gradient(residual), expected, rtol=1e-6, atol=1e-6)


def test_the_fit_is_that_of_scikit_learn_on_the_joined_matrix(tmp_path):
    manifest = write_tiny_dataset(tmp_path)
    design = read_design(str(tmp_path), manifest, "train")
    joined, clicks = joined_by_a_loop(tmp_path, manifest, "train")
    reference = LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=5000).fit(joined, clicks)
    probability = reference.predict_proba(joined)[:, 1]
    found = 1 / (1 + np.exp(-design.logit(fit(design, clicks, penalty=2.0))))
    np.testing.assert_allclose(found, probability, atol=2e-3)


def test_the_baseline_learns_what_the_fields_tell(tmp_path):
    write_tiny_dataset(tmp_path, num_contexts=1500)
    result = baseline(str(tmp_path))
    assert result["ctr_auc"] > 0.75
    assert result["ctcvr_auc"] > 0.75
    assert result["ctr_calibration"] == pytest.approx(1, abs=0.1)
