"""AUC of any number of impressions in a fixed amount of memory."""

import numpy as np


class RankHistogram:
    """AUC in a fixed amount of memory: probabilities are binned by their logit, 1/2,048 wide; ties count one half."""

    def __init__(self) -> None:
        self.count_2N = np.zeros((2, 32 * 2048), np.int64)

    def add(self, probability: np.ndarray, label: np.ndarray) -> None:
        """Add true probabilities and the labels (bool) drawn from them."""
        logit = np.log(probability / (1 - probability))
        place = np.clip((logit + 24) * 2048, 0, self.count_2N.shape[1] - 1).astype(np.int64)
        for value in (0, 1):
            self.count_2N[value] += np.bincount(place[label == value], minlength=self.count_2N.shape[1])

    def auc(self) -> float | None:
        """None where one of the classes is empty."""
        negative_N, positive_N = self.count_2N
        pairs = int(negative_N.sum()) * int(positive_N.sum())
        if not pairs:
            return None
        below_N = np.cumsum(negative_N) - negative_N
        return float(((below_N + 0.5 * negative_N) * positive_N).sum() / pairs)
