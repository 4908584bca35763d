"""AUC of any number of impressions in a fixed amount of memory."""

import numpy as np


class AucHistogram:
    """AUC in a fixed amount of memory. Probabilities are binned by their logit, 1/2,048 wide; ties count one half."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, 32 * 2048), np.int64)

    def add(self, probability: np.ndarray, label: np.ndarray) -> None:
        """Add true probabilities and the labels (bool) drawn from them."""
        logit = np.log(probability / (1 - probability))
        bin_N = np.clip((logit + 24) * 2048, 0, self.counts.shape[1] - 1).astype(np.int64)
        for value in (0, 1):
            self.counts[value] += np.bincount(bin_N[label == value], minlength=self.counts.shape[1])

    def auc(self) -> float | None:
        """Return the AUC of all that was added; None if one of the classes is empty."""
        negatives, positives = self.counts
        pairs = int(negatives.sum()) * int(positives.sum())
        if not pairs:
            return None
        negatives_below = np.cumsum(negatives) - negatives
        return float(((negatives_below + 0.5 * negatives) * positives).sum() / pairs)
