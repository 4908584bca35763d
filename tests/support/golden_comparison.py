"""Compare two golden records: to the bit on machines of one kind, within tolerances on others."""

import math
from typing import Any

from golden_cases import EARLY_STEP, LAST_STEP, RUNS
from golden_record import Record, checkpoint_name

#: Tolerances where bits cannot be compared: of losses and of norms of tensors, up to step 10 and after it. Another kernel's
#: rounding is some 1e-7. It stays below 1e-5 until one ReLU switches because of it. That moves weights by a step of Adam,
#: other ReLUs follow, and ten steps later losses are 1e-2 apart. This happens early in deep towers with dropout, and in some
#: runs not within sixty steps. So the first steps have a tight tolerance: a change of the computation shows there too. The
#: last steps have a wide one. Measured on one machine whose libraries were limited to AVX2 and to SSE (ATEN_CPU_CAPABILITY,
#: ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS, MKL_CBWR), the largest of all runs: losses 4e-7 and norms 1e-6 up to
#: step 10, losses 5e-2 and norms 0.24 at the end.
EARLY, LATE_LOSS, LATE_NORM = 1e-3, 0.2, 0.5
#: bf16 rounds by 4e-3 (measured: losses 1e-3, norms 3e-2 at step 10), and the next day begins with the weights of a step 60.
EARLY_OF = {"bf16_adagrad_schedules": 5e-2, "next_day": 5e-2}
#: Metrics of predictions, absolutely: AUCs and losses (measured: 1.2e-2), and those by few impressions (0.13).
LATE_AUC, LATE_METRIC = 0.05, 0.3
#: Metrics on the recorded machine: golden.json has sums of doubles in the order of rows; the AUCs are quotients of integers.
SUMS_RTOL = 1e-12


def all_differences(golden: Record, seen: Record) -> list[str]:
    """Compare logs and datasets to the byte, and runs to the bit where the fingerprint is the recorded one."""
    found = [
        line for part in ("pyarrow", "logs", "datasets") for line in differences(golden[part], seen[part], f"/{part}")
    ]
    for name in RUNS:
        one, other = golden["runs"][name], seen["runs"][name]
        alike = golden["fingerprint"] == seen["fingerprint"]
        lines = differences(one, other) if alike else run_differences(name, one, other)
        found += [f"/runs/{name}{line}" for line in lines]
    return found


def differences(golden: Any, seen: Any, where: str = "") -> list[str]:
    """Return one line for each value that is not the recorded one."""
    if isinstance(golden, dict) and isinstance(seen, dict):
        found = [f"{where}/{key} is {'new' if key in seen else 'gone'}" for key in sorted(golden.keys() ^ seen.keys())]
        for key in golden:
            if key in seen:
                found += differences(golden[key], seen[key], f"{where}/{key}")
        return found
    if isinstance(golden, list) and isinstance(seen, list) and len(golden) == len(seen):
        pairs = enumerate(zip(golden, seen, strict=True))
        return [line for number, (one, other) in pairs for line in differences(one, other, f"{where}/{number}")]
    return [] if golden == seen or _is_same_sum(golden, seen, where) else [f"{where} was {golden} and is {seen}"]


def _is_same_sum(golden: Any, seen: Any, where: str) -> bool:
    """Tell a metric that differs by the order in which its terms were added; since then the order makes no difference."""
    both = isinstance(golden, float) and isinstance(seen, float) and "/metrics/" in where
    return both and math.isclose(golden, seen, rel_tol=SUMS_RTOL)


def run_differences(name: str, golden: Record, seen: Record) -> list[str]:
    """Return one line for each value of the run `name` that is outside its tolerance; for machines of another kind."""
    early = EARLY_OF.get(name, EARLY)
    found = differences(_structure_of(golden), _structure_of(seen))
    if found:
        return found
    for one, other in zip(golden["log"], seen["log"], strict=True):
        tolerance = early if one["step"] <= EARLY_STEP else LATE_LOSS
        found += _metric_differences(f"/log/{one['step']}", one, other, tolerance)
    for step, tolerance in ((EARLY_STEP, early), (LAST_STEP, LATE_NORM)):
        one, other = (run["checkpoints"][checkpoint_name(step)]["tensors"] for run in (golden, seen))
        found += [line for key in one for line in _array_differences(f"/{step}/{key}", one[key], other[key], tolerance)]
    for split in golden["evaluations"]:
        one, other = (run["evaluations"][split] for run in (golden, seen))
        found += _metric_differences(f"/{split}", one["metrics"], other["metrics"], LATE_LOSS)
        for key, value in one["columns"].items():
            if key.startswith("p_"):
                found += _array_differences(f"/{split}/{key}", value, other["columns"][key], LATE_LOSS)
            else:  # read, not computed
                found += differences(value, other["columns"][key], f"/{split}/{key}")
    return found


def _structure_of(run: Record) -> Record:
    """Return what does not depend on rounding: steps, names, types, shapes."""
    return {
        "log": [[entry["epoch"], entry["step"], sorted(entry)] for entry in run["log"]],
        "checkpoints": {
            name: {
                "files": {file: num_bytes for file, (num_bytes, _) in checkpoint["files"].items()},
                "tensors": {key: text.split()[:2] for key, text in checkpoint.get("tensors", {}).items()},
            }
            for name, checkpoint in run["checkpoints"].items()
        },
        "evaluations": {
            split: {"metrics": sorted(found["metrics"]), "columns": sorted(found["columns"])}
            for split, found in run["evaluations"].items()
        },
    }


def _metric_differences(where: str, golden: Record, seen: Record, loss_rtol: float) -> list[str]:
    """Compare losses relatively, metrics absolutely (they may be near 0), and counts and names exactly."""
    found = []
    for key, value in golden.items():
        other = seen[key]
        if not isinstance(value, float) or not isinstance(other, float):
            near = value == other
        elif key.startswith("loss"):
            near = abs(value - other) <= loss_rtol * abs(value)
        else:
            few = key.endswith("_calibration") or "_top_" in key
            near = abs(value - other) <= (LATE_METRIC if few else LATE_AUC)
        found += [] if near else [f"{where}/{key} was {value} and is {other}"]
    return found


def _array_differences(where: str, golden: str, seen: str, tolerance: float) -> list[str]:
    """Compare two arrays of one type and shape, of which only sums and norms are known.

    If the arrays are `tolerance` of the norm apart, their norms differ by no more than that. Their sums then differ by no
    more than √size times it (Cauchy and Schwarz).
    """
    _, shape, _, *numbers = golden.split()
    *_, other_sum, other_norm = map(float, seen.split()[3:])
    whole_sum, norm = map(float, numbers)
    size = math.prod(map(int, shape.split("x")))
    if abs(norm - other_norm) <= tolerance * norm and abs(whole_sum - other_sum) <= tolerance * norm * math.sqrt(size):
        return []
    return [f"{where} was {golden} and is {seen}"]
