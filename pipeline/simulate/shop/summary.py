"""The lines that jobs.simulate prints about a shop, and the command that comes next."""

from pathlib import Path
from typing import Any


def shop_summary(out: Path, record: dict[str, Any]) -> str:
    """Say what the shop in `out` holds, by what simulation.json says of it."""
    rates, actions = record["settings"]["rates"], record["actions"]
    rows = sum(sum(outcomes.values()) for outcomes in actions["outcomes"].values()) + actions["other"]
    lines = [
        f"{out}: a shop of {record['settings']['impressions']:,} impressions and {rows:,} actions, labels at "
        f"rates={rates['name']}"
    ]
    for split, tally in record["splits"].items():
        auc = tally["true_auc"]["ctr_auc"]
        lines.append(
            f"  {split}: {tally['page_views']:,} page views, {tally['impressions']:,} impressions, {tally['clicks']:,} "
            f"clicks, {tally['dactions']:,} dactions, {tally['conversions']:,} conversions"
            + (f", true CTR AUC {auc:.4f}" if auc is not None else "")
        )
    lines.append(f"  {sum(record['quarantined'].values()):,} dirty impressions planted; dirt.parquet lists them")
    lines.append(
        f"next: python -m jobs.preprocess source=simulated_shop features=simulated_shop labels=cart_wish "
        f"source.path={out} out=DATASET"
    )
    return "\n".join(lines)
