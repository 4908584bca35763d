"""The charts of audit.html: sizes of contexts, click rate by size, and where the values of a field lie in its vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.html.charts import Axis, Series, figure

_COLORS = {"train": 0, "validation": 2, "test": 1}
_FEWEST = 100  # impressions behind a rate that is drawn


def context_figures(audit: Mapping[str, Any], splits: Sequence[str]) -> str:
    """How many contexts there are of each size, and how often their impressions are clicked."""
    sizes, rates = [], []
    for split in splits:
        bins = audit["contexts"][split]["bins"]
        last = max(bin["from"].bit_length() for bin in bins)
        count_B = np.zeros(last)
        for bin in bins:
            count_B[bin["from"].bit_length() - 1] = bin["contexts"] / audit["contexts"][split]["contexts"]
        sizes.append(Series(split, 2.0 ** np.arange(last + 1), count_B, "steps", _COLORS[split]))
        seen = [bin for bin in bins if bin["impressions"] >= _FEWEST]
        middle_B = [np.sqrt(bin["from"] * (bin["to"] + 1)) for bin in seen]
        rate_B = [bin["clicks"] / bin["impressions"] for bin in seen]
        if seen:
            rates.append(Series(split, middle_B, rate_B, "points", _COLORS[split]))
    impressions = Axis("impressions of a context", log=True)
    drawn = [
        figure("Sizes", "Share of contexts by their impressions", impressions, Axis("share of contexts", low=0), sizes)
    ]
    if rates:
        click = Axis("clicks per impression", low=0)
        drawn.append(
            figure("Click rate by size", "Click rate by impressions of the context", impressions, click, rates)
        )
    return f'<div class="figures">{"".join(drawn)}</div>'


def index_figures(audit: Mapping[str, Any], names: Sequence[str], splits: Sequence[str]) -> str:
    """Of some fields, where the values of each split lie between the most frequent ids and the rarest."""
    drawn = []
    for name in names:
        series = []
        for split in splits:
            # Bin b of the index is 2^(b−1) … 2^b − 1; bins 0 and 1 are missing and out of vocabulary.
            count_B = np.array(audit["fields"][name][split]["index_bins"][2:], np.float64)
            if count_B.sum() > 0:
                edges = 2.0 ** np.arange(1, len(count_B) + 2)
                series.append(Series(split, edges, count_B / count_B.sum(), "steps", _COLORS[split]))
        if series:
            axis = Axis("index, frequent ids first", log=True)
            description = f"Share of known values of {name} by index"
            drawn.append(figure(name, description, axis, Axis("share of known values", low=0), series))
    return f'<div class="figures">{"".join(drawn)}</div>'
