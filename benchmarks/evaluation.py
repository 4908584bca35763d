"""The metrics of an evaluation alone, from predictions on the disk: seconds, CPU seconds and peak memory.

    python -m benchmarks.evaluation 43000000            # Ali-CCP's test split
    python -m benchmarks.evaluation 43000000 --truth    # with the true probabilities of a simulated log

Writes predictions of that many impressions (a click rate of 4 %, 0.5 % of clicks convert, 58 impressions a context, 3 contexts
a user) to a temporary folder, and evaluates them in a process of its own. Two cores of a shared EPYC are the machine of
docs/benchmarks-diary.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 1 << 19


def main() -> None:
    """Parse the command line, write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--folder", type=Path, help="predictions that are there already, to be evaluated")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(evaluated(options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows, options.truth)
        command = [sys.executable, "-m", "benchmarks.evaluation", "0", "--folder", folder]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)  # compiles the kernels
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(
        f"{options.rows:,} impressions{', with the truth' if options.truth else ''}: {found['seconds']:.1f} s, "
        f"{found['cpu_s']:.1f} CPU s, {found['threads']} tasks at a time, peak {found['peak_gb']:.2f} GB "
        f"(of it {found['start_gb']:.2f} GB of imports)"
    )


def write(folder: Path, num_rows: int, has_truth: bool) -> None:
    """Write `num_rows` predictions as jobs.evaluate does."""
    rng = np.random.default_rng(1)
    writer = None
    for start in range(0, num_rows, ROWS_PER_GROUP):
        size = min(ROWS_PER_GROUP, num_rows - start)
        context = (start + np.arange(size)) // 58
        p_ctr, p_cvr = rng.beta(1.0, 24.0, size).astype(np.float32), rng.beta(0.5, 100.0, size).astype(np.float32)
        click = rng.random(size) < p_ctr
        columns = {
            "impression_id": start + np.arange(size),
            "context_id": pa.array(np.char.mod("%016x", context)),
            "group_id": pa.array(context // 3 * 1_000_003, mask=context % 50 == 0),
            "click": click.astype(np.int8),
            "conversion": (click & (rng.random(size) < p_cvr)).astype(np.int8),
        }
        noise = rng.lognormal(0.0, 0.4, size).astype(np.float32)
        columns |= {"p_ctr": np.minimum(p_ctr * noise, 1), "p_cvr": np.minimum(p_cvr * noise, 1)}
        columns["p_ctcvr"] = columns["p_ctr"] * columns["p_cvr"]
        if has_truth:
            columns |= {"true_p_ctr": p_ctr, "true_p_cvr": p_cvr}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / "part-00000.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def evaluated(folder: Path) -> dict[str, float]:
    """Evaluate the predictions in `folder`; return what that took."""
    from training.evaluation import metrics
    from training.evaluation.prediction_files import PredictionFiles
    from training.run.evaluate import threads_for
    from training.run.malloc import keep_freed_memory

    keep_freed_memory()
    start_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    predictions = PredictionFiles(folder, "")
    true = predictions.true_columns()
    threads = threads_for(predictions.num_rows, true is not None)
    found = metrics.evaluate_with_curves(predictions, true, threads, predictions.contexts)
    assert found.metrics["ctr_auc"] is not None
    return {
        "seconds": time.monotonic() - start_s,
        "cpu_s": time.process_time() - start_cpu_s,
        "threads": threads,
        "start_gb": start_gb,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


if __name__ == "__main__":
    main()
