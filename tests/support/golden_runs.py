"""Compare what the commands of this project make of fixed inputs with what they made when golden.json was recorded.

    python tests/support/golden_runs.py --compare                       # prints each difference; status 1 if there is one
    python tests/support/golden_runs.py --record                        # writes tests/whole/golden.json anew
    python tests/support/golden_runs.py --record --checkout ../before   # from the commands of another checkout
    python tests/support/golden_runs.py --compare --keep FOLDER         # leaves logs, datasets and runs there

The golden files know the project by its command lines and by the files that they write. They import none of its modules,
so renaming a module cannot change them. Read golden_cases (what is run), golden_inputs (the logs), golden_process (how the
commands run), golden_record (what is recorded) and golden_comparison, in this order.

Two kinds of values are recorded:
- Bytes of logs and datasets. They are the same on every machine with the recorded version of pyarrow, which its files name.
- Bits of weights, losses and predictions, with their sums and norms. Bits are compared where the machine has the recorded
  `fingerprint`: torch, oneDNN, MKL and FBGEMM choose their kernels by CPU, and other kernels round sums in another order.
  Elsewhere sums and norms are compared, within the tolerances of golden_comparison.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from golden_cases import DATASETS, ONE_RANK, RUNS, TWO_RANKS
from golden_comparison import all_differences
from golden_inputs import write_logs
from golden_process import run_in_one_process
from golden_record import Record, record, text_of

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "whole" / "golden.json"
#: The environment variable that names another checkout, whose commands are run in place of this one's.
CHECKOUT = "GOLDEN_CHECKOUT"


def run_all(checkout: Path, folder: Path) -> Record:
    """Run every command of `checkout` below the empty `folder`, and record what they wrote."""
    logs = write_logs(checkout, folder)
    folders = {**logs, **{name: folder / "datasets" / name for name in DATASETS}}
    preprocess = [
        ["jobs.preprocess", f"source.path={logs[log]}", f"out={folders[name]}", *with_folders(arguments, folders)]
        for name, (log, arguments) in DATASETS.items()
    ]
    run_in_one_process(checkout, folder / "preprocess", preprocess)
    runs = {name: folder / "runs" / name for name in RUNS}
    for num_ranks in (ONE_RANK, TWO_RANKS):
        commands = []
        for name, (ranks, data, train, evaluate) in RUNS.items():
            if ranks == num_ranks:
                arguments = with_folders(train, folders | runs)
                commands.append(["jobs.train", f"data={folders[data]}", f"out={runs[name]}", *arguments])
                commands.append(["jobs.evaluate", f"run={runs[name]}", *with_folders(evaluate, folders)])
        run_in_one_process(checkout, folder / f"train-{num_ranks}", commands, num_ranks)
    return record(logs, folders, runs)


def with_folders(arguments: tuple[str, ...], folders: Mapping[str, Path]) -> list[str]:
    """Replace each {name} in the arguments by the folder of that name."""
    replaced = []
    for argument in arguments:
        for name, path in folders.items():
            argument = argument.replace(f"{{{name}}}", str(path))
        replaced.append(argument)
    return replaced


def main() -> None:
    """Parse the command line, run everything, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", action="store_true")
    what.add_argument("--compare", action="store_true")
    parser.add_argument("--checkout", type=Path, default=Path(os.environ.get(CHECKOUT, ROOT)))
    parser.add_argument("--keep", type=Path, help="an empty or new folder for all output")
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        now = run_all(options.checkout.resolve(), folder.resolve())
    if options.record:
        options.golden.write_text(text_of(now), encoding="utf-8")
        print(options.golden)
        return
    golden = json.loads(options.golden.read_text(encoding="utf-8"))
    alike = golden["fingerprint"] == now["fingerprint"]
    print("bits of runs are compared" if alike else "another machine: numbers of runs are compared, not bits")
    found = all_differences(golden, now)
    print("\n".join(found) or "no difference")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
