"""The simulator and the pipeline, which share no code for it, agree on every planted fault and every label."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess
from pipeline.simulate.run import SimulateSettings, simulate

#: Reasons that leave their line in the dataset.
KEPT = ("conversion_without_click", "feature_count_mismatch")


@pytest.mark.usefixtures("spark")
def test_the_quarantine_holds_exactly_the_planted_lines_and_the_dataset_every_simulated_label(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = tmp_path / "raw"
    overrides = [f"out={raw}", "impressions=20000", "seed=3", "rates=demo", "dirt=0.01", "actions=true"]
    simulate(compose("simulate", SimulateSettings, overrides))
    manifest = preprocess(preprocess_settings(raw, tmp_path / "out", "labels=cart_wish"))

    planted = [row for split in ("train", "test") for row in pq.read_table(raw / f"dirt_{split}.parquet").to_pylist()]
    set_aside = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert len({row["reason"] for row in planted}) == 9
    assert sorted((row["source"], row["offset"], row["reason"]) for row in set_aside) == sorted(
        (row["file"], row["offset"], row["reason"]) for row in planted if row["reason"] not in KEPT
    )
    for row in set_aside:
        text = (raw / row["source"]).read_bytes()
        assert text[row["offset"] :].split(b"\n", 1)[0] == row["line"]

    simulated = json.loads((raw / "simulation.json").read_text())["splits"]
    both_of_train = [manifest.totals[split] for split in ("train", "validation")]
    for name in ("impressions", "clicks", "dactions", "conversions"):
        assert sum(total[name] for total in both_of_train) == simulated["train"][name]
        assert manifest.totals["test"][name] == simulated["test"][name]
    for split, totals in manifest.audit["lines"].items():
        for grain, lines in totals.items():
            alone = lines.get("without_impressions", 0)
            assert lines["read"] == lines["written"] + alone + sum(lines["quarantined"].values()), (split, grain)


@pytest.mark.usefixtures("spark")
def test_at_published_rates_the_audit_reproduces_the_planted_funnel_the_dirt_and_the_contexts_to_the_row(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    overrides = [f"out={raw}", "impressions=60000", "seed=5", "rates=published", "dirt=0.005", "actions=true"]
    simulate(compose("simulate", SimulateSettings, overrides))
    preprocess(preprocess_settings(raw, out, "labels=cart_wish", "split.validation=0"))
    audit = json.loads((out / "audit.json").read_text())
    simulated = json.loads((raw / "simulation.json").read_text())["splits"]

    set_aside: Counter[str] = Counter()
    for split, record in simulated.items():
        names = ("impressions", "clicks", "dactions", "conversions")
        assert audit["funnel"][split] == {name: record[name] for name in names}
        kept: Counter[str] = Counter()
        for counts in record["dirty"].values():
            for reason, number in counts.items():
                (kept if reason in KEPT else set_aside)[reason] += number
        assert audit["kept"][split] == kept
        keys = pq.read_table(raw / f"truth_{split}.parquet")["context_id"].to_pylist()
        sizes = sorted(Counter(keys).values())
        found = audit["contexts"][split]
        assert found["contexts"] == record["contexts"] == len(sizes)
        assert [(bin["from"], bin["to"], bin["contexts"], bin["impressions"]) for bin in found["bins"]] == [
            (low, 2 * low - 1, len(inside), sum(inside))
            for low in (1 << bit for bit in range(sizes[-1].bit_length()))
            if (inside := [size for size in sizes if low <= size < 2 * low])
        ]
        assert sum(bin["clicks"] for bin in found["bins"]) == record["clicks"]
        assert found["percentiles"]["50"] == sizes[math.ceil(len(sizes) / 2) - 1]
        assert found["percentiles"]["100"] == sizes[-1]
        assert audit["overlap"]["contexts"]["distinct"][split] == {"number": len(sizes), "exact": True}
    assert {reason: number for reason, number in audit["quarantined"].items() if number} == set_aside

    clicks = sum(record["clicks"] for record in simulated.values())
    conversions = sum(record["conversions"] for record in simulated.values())
    for count, trials, rate in ((clicks, 60_000, 0.038871), (conversions, clicks, 0.005353)):
        # Impressions of one user are alike, so the error is larger than the binomial one.
        assert abs(count - trials * rate) < 8 * math.sqrt(trials * rate)
    assert audit["leakage"]["named"] == []
