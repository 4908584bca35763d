"""The charts of audit.html: sizes of contexts, click rate by size, and the values of a field along its vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.html.charts import Axis, Chart, Series, Sparkline, chart, sparkline

_COLORS = {"train": 0, "validation": 2, "test": 1}
_MIN_IMPRESSIONS_OF_RATE = 100  # behind a rate that is drawn


def context_charts(audit: Mapping[str, Any], splits: Sequence[str]) -> list[Chart]:
    """Draw the share of contexts of each size, and the click rate of their impressions."""
    sizes, rates = [], []
    for split in splits:
        bins = audit["contexts"][split]["bins"]
        last = max(bin["from"].bit_length() for bin in bins)
        shares = np.zeros(last)
        for bin in bins:
            shares[bin["from"].bit_length() - 1] = bin["contexts"] / audit["contexts"][split]["contexts"]
        sizes.append(Series(split, 2.0 ** np.arange(last + 1), shares, "steps", _COLORS[split]))
        seen = [bin for bin in bins if bin["impressions"] >= _MIN_IMPRESSIONS_OF_RATE]
        middles = [np.sqrt(bin["from"] * (bin["to"] + 1)) for bin in seen]
        rates_of_bins = [bin["clicks"] / bin["impressions"] for bin in seen]
        if seen:
            rates.append(Series(split, middles, rates_of_bins, "points", _COLORS[split]))
    impressions = Axis("impressions of a context", log=True)
    drawn = [
        chart("Sizes", "Share of contexts by their impressions", impressions, Axis("share of contexts", low=0), sizes)
    ]
    if rates:
        click = Axis("clicks per impression", low=0)
        drawn.append(chart("Click rate by size", "Click rate by impressions of the context", impressions, click, rates))
    return drawn


def index_charts(audit: Mapping[str, Any], names: Sequence[str], splits: Sequence[str]) -> list[Chart]:
    """Draw, for each named field, the share of each split's values from the most frequent ids to the rarest."""
    drawn = []
    for name in names:
        series = _index_series(audit, name, splits)
        if series:
            axis = Axis("index, frequent ids first", log=True)
            description = f"Share of known values of {name} by index"
            drawn.append(chart(name, description, axis, Axis("share of known values", low=0), series))
    return drawn


def index_sparkline(audit: Mapping[str, Any], name: str, splits: Sequence[str]) -> Sparkline | None:
    """Draw the same for one field in the height of a line, without what stands beside it."""
    description = f"Known values of {name} from the most frequent ids to the rarest, in {', '.join(splits)}"
    return sparkline(description, _index_series(audit, name, splits), log_x=True)


def _index_series(audit: Mapping[str, Any], name: str, splits: Sequence[str]) -> list[Series]:
    series = []
    for split in splits:
        # Bin b of the index is 2^(b−1) … 2^b − 1; bins 0 and 1 are missing and out of vocabulary.
        shares = np.array(audit["fields"][name][split]["index_bins"][2:], np.float64)
        if shares.sum() > 0:
            edges = 2.0 ** np.arange(1, len(shares) + 2)
            series.append(Series(split, edges, shares / shares.sum(), "steps", _COLORS[split]))
    return series
