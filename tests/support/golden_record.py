"""Record what the golden commands wrote: bytes of logs and datasets, and bits, sums and norms of weights and predictions."""

import json
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from golden_cases import DATASETS, EARLY_STEP, LAST_STEP
from safetensors.numpy import load_file

Record = dict[str, Any]  # as in golden.json
#: What a log says of the time of its run, and what was added to it after golden.json was first recorded.
TIMES = ("impressions_per_s", "waiting_share")
NEW_IN_LOG = ("learning_rate_", "gradient_norm_", "best_")
#: What was added to metrics.json after golden.json was first recorded.
NEW_IN_METRICS = (
    "provenance",
    "intervals",
    "slices",
    "cvr_by_click_propensity",
    "gauc_weighted",
    "cvr_num_above_one",
    "observed_rates",
    "calibration_in_words",
    "alerts",
)
NEW_CUTS_IN_METRICS = ("cvr_recall_top_", "cvr_precision_top_", "cvr_f1_top_")

#: What audit.json said of an event log when golden.json was first recorded; what was added later is left out.
OLD_IN_EVENTS = {
    "actions": ("read", "malformed", "other", "after_end", "outcomes"),
    "actions_end_ms": (),
    "impressions": ("read", "outside_split", "immature"),
}


def record(logs: Mapping[str, Path], folders: Mapping[str, Path], runs: Mapping[str, Path]) -> Record:
    """Return the record of these folders: what golden.json holds."""
    found = {
        "fingerprint": fingerprint(),
        "pyarrow": version("pyarrow"),
        "logs": {name: _files(path) for name, path in logs.items()},
        "datasets": _datasets(folders),
        "runs": {name: _run(path) for name, path in runs.items()},
    }
    return json.loads(json.dumps(found))  # as it is read from golden.json


def _xxh3_of(content: Any) -> str:
    """Hash bytes, a text, or anything else as JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return xxhash.xxh3_64_hexdigest(content.encode() if isinstance(content, str) else content)


def _files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> dict[str, list[Any]]:
    """Map each file's path to its size in bytes and its xxh3."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(suffixes)):
        content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = [len(content), _xxh3_of(content)]
    return found


def _datasets(folders: Mapping[str, Path]) -> dict[str, Record]:
    """Record every dataset, in the order of golden_cases: a later one may name the manifest of an earlier one."""
    found: dict[str, Record] = {}
    recorded_hash: dict[str, str] = {}  # hash of a manifest as written → as recorded
    for name in DATASETS:
        text = (folders[name] / "manifest.json").read_text()
        manifest = json.loads(text)
        assert text == _json_of(manifest), f"{folders[name]}/manifest.json is written in another way"
        xxh3 = _xxh3_of(text)
        manifest = _normalize(manifest, recorded_hash)
        recorded_hash[xxh3] = _xxh3_of(_json_of(manifest))
        found[name] = _dataset(folders[name], manifest, xxh3)
    return found


def _json_of(manifest: Record) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def _normalize(manifest: Record, recorded_hash: Mapping[str, str]) -> Record:
    """Remove the setting `rows.scatter_chunks` from a manifest: it was dropped after golden.json was first recorded.

    Two other values depend on it. The hash of the settings is removed too, and the manifest's checksum of itself, which
    came later and has to be right. Hashes of earlier manifests (vocabulary.base,
    lineage) become those of the recorded manifests.
    """
    own_xxh3 = manifest.pop("content_xxh3")
    assert own_xxh3 == _xxh3_of(_json_of(manifest)), "a manifest has another checksum of itself"
    manifest["settings"]["rows"].pop("scatter_chunks", None)
    del manifest["settings_xxh3"]
    for source in manifest["sources"]:
        del source["fingerprint"]  # recorded before sources had one
    base = manifest["settings"]["vocabulary"]["base"]
    manifest["settings"]["vocabulary"]["base"] = base and recorded_hash[base]  # KeyError: it is not that of its base
    manifest["lineage"] = [recorded_hash[xxh3] for xxh3 in manifest["lineage"]]
    return manifest


def _dataset(folder: Path, manifest: Record, xxh3: str) -> Record:
    quarantine = {}
    for file in manifest["audit"]["quarantine"]:
        rows = pq.read_table(folder / file["path"]).to_pylist()
        texts = [{key: str(value) for key, value in row.items()} for row in rows]  # lines are bytes
        quarantine[file["path"]] = {"reasons": Counter(row["reason"] for row in rows), "rows_xxh3": _xxh3_of(texts)}
    audit = json.loads((folder / "audit.json").read_text())
    assert audit.pop("manifest_xxh3") == xxh3, f"{folder}/audit.json names another manifest"
    assert audit.pop("content_xxh3"), f"{folder}/audit.json has no checksum of itself"
    if "events" in audit:
        audit["events"] = _without_newer(audit["events"], OLD_IN_EVENTS)
    return {
        "manifest_xxh3": _xxh3_of(_json_of(manifest)),
        "manifest": {key: value if key == "totals" else _xxh3_of(value) for key, value in manifest.items()},
        "files": _files(folder, (".parquet",)),
        "quarantine": quarantine,
        "audit_xxh3": _xxh3_of(audit),
    }


def _without_newer(found: Record, old: Mapping[str, tuple[str, ...]]) -> Record:
    return {name: {key: found[name][key] for key in keys} if keys else found[name] for name, keys in old.items()}


def _run(folder: Path) -> Record:
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    checkpoints: Record = {}
    for path in sorted((folder / "checkpoints").glob("step-*")):
        checkpoints[path.name] = found = {"files": _files(path, (".safetensors",))}
        if path.name in (checkpoint_name(EARLY_STEP), checkpoint_name(LAST_STEP)):
            found["tensors"] = {
                f"{name}:{key}": _array(array)
                for name in found["files"]
                for key, array in sorted(load_file(path / name).items())
            }
    return {
        "log": [
            {key: entry[key] for key in entry if key not in TIMES and not key.startswith(NEW_IN_LOG)} for entry in log
        ],
        "checkpoints": checkpoints,
        "evaluations": _evaluations(folder),
    }


def _evaluations(run: Path) -> Record:
    """Record the evaluation of each split, wherever it is kept: that of an earlier checkpoint has a folder of its own."""
    found = {path.name: (path, run / f"metrics.{path.name}.json") for path in (run / "predictions").glob("*")}
    for path in (run / "evaluations").glob("*"):
        found[path.name.partition(".")[0]] = path / "predictions", path / "metrics.json"
    return {split: _evaluation(*found[split]) for split in sorted(found)}


def _evaluation(predictions: Path, metrics: Path) -> Record:
    """Record metrics, and predictions in the order of impressions: the order of rows depends on the number of ranks."""
    table = pq.read_table(predictions).sort_by([("impression_id", "ascending"), ("context_id", "ascending")])
    columns = {
        name: _xxh3_of(column.to_pylist())
        if name in ("context_id", "group_id")  # texts; numbers that may be missing
        else _array(column.to_numpy())
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    figures = json.loads(metrics.read_text())
    return {
        "columns": columns,
        "metrics": {
            name: figures[name]
            for name in figures
            if not (name.endswith(NEW_IN_METRICS) or name.startswith(NEW_CUTS_IN_METRICS))
        },
    }


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _array(array: Any) -> str:
    """Return type, shape, hash of the bits, sum and norm. Sum and norm are compared where bits differ by rounding."""
    wide = array.astype(np.float64).ravel()
    shape = "x".join(map(str, array.shape)) or "1"
    numbers = f"{wide.sum():.7g} {np.sqrt((wide * wide).sum()):.7g}"
    return f"{array.dtype.name} {shape} {_xxh3_of(np.ascontiguousarray(array).tobytes())} {numbers}"


def fingerprint() -> Record:
    """Collect what decides the bits of a floating-point result on this machine, as far as it is known."""
    import torch  # slow to import, and the tests that only compare do without

    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        cpu[name.strip()] = value.strip()
    wanted = ("avx", "fma", "amx", "f16c", "bf16", "vnni")
    packages = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy")
    return {
        "cpu": {key: cpu.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "cache size")},
        "flags": sorted(flag for flag in cpu.get("flags", "").split() if any(word in flag for word in wanted)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def text_of(golden: Record) -> str:
    """Return JSON with one line for each value that fits a line."""

    def lines(value: Any, indent: str) -> str:
        short = json.dumps(value, ensure_ascii=False)
        if len(short) <= 150 or not isinstance(value, dict | list):
            return short
        inner = indent + " "
        if isinstance(value, list):
            return "[\n" + ",\n".join(inner + lines(item, inner) for item in value) + f"\n{indent}]"
        items = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {lines(item, inner)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"

    return lines(golden, "") + "\n"
