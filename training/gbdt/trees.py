"""XGBoost, an optional extra: `pip install --no-deps xgboost-cpu==3.2.0` (the newest for Python 3.11)."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from training.gbdt.settings import GbdtSettings


def load_xgboost() -> Any:
    """Import XGBoost. Raises InputError where it is not installed."""
    try:
        import xgboost
    except ImportError as error:
        raise InputError(
            "jobs.gbdt needs XGBoost, which is no part of the installation: pip install --no-deps xgboost-cpu==3.2.0"
        ) from error
    return xgboost


def parameters_of(settings: GbdtSettings, mean: float) -> dict[str, Any]:
    """Return XGBoost's parameters.

    ESM² wants at least 20 instances in a node that is split. XGBoost knows no such number. It wants a least sum of Hessians
    p·(1 − p) in each child: here that of half as many instances of the mean rate, so a node that is split has as many.
    """
    trees = settings.trees
    return {
        "objective": "binary:logistic",
        "max_depth": trees.depth,
        "eta": trees.learning_rate,
        "subsample": trees.row_share,
        "colsample_bytree": trees.feature_share,
        "min_child_weight": trees.min_instances / 2 * mean * (1.0 - mean),
        "base_score": min(max(mean, 1e-6), 1.0 - 1e-6),
        "tree_method": "hist",
        "seed": settings.seed,
        "nthread": settings.threads,
    }


def fit_trees(settings: GbdtSettings, columns: np.ndarray, label: np.ndarray, names: list[str]) -> Any:
    """Fit the trees to `columns` [instances, columns] and their labels; a missing value is NaN."""
    xgboost = load_xgboost()
    matrix = xgboost.QuantileDMatrix(columns, label, feature_names=names, nthread=settings.threads)
    return xgboost.train(parameters_of(settings, float(label.mean())), matrix, settings.trees.number)


def predict_trees(booster: Any, columns: np.ndarray, names: list[str]) -> np.ndarray:
    """Return float32: the probability of each row of `columns`."""
    matrix = load_xgboost().DMatrix(columns, feature_names=names, nthread=1)
    probabilities: np.ndarray = booster.predict(matrix)
    return probabilities


def load_trees(path: Path) -> Any:
    """Read trees that `save_model` wrote, in XGBoost's own JSON."""
    xgboost = load_xgboost()
    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except xgboost.core.XGBoostError as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); train into another out=….") from error
    return booster
