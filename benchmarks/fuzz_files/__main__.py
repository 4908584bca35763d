"""Damage files and read them: each reader gives the undisturbed result, or refuses in one sentence, within a deadline.

    python -m benchmarks.fuzz_files [mutations=5000] [seed=1] [deadline_s=20] [only=SEED] [work=FOLDER]

A small log is preprocessed and a run of two epochs trained. Then one file after another is damaged (bits, blocks, JSON, YAML
and footers, or a folder, FIFO or link in its place) and read by the functions that the jobs call, in one process that is
replaced when it hangs or ends. FOLDER keeps the undisturbed files for the next time. Prints a table of kind × outcome, and
each failure with the seed that repeats it by `only=SEED`. Exits with status 1 if anything failed. Ctrl-C ends early, with
the table of what was done.

same         the figures of the undisturbed files
refused      one sentence, and nothing but what the reader says it falls back to (an earlier checkpoint, a card without audit)
other data   for files whose content is the user's, or whose checksums were forged: the figures of an independent reading
             of the damaged file (tests/support/references, PyYAML, the other decoder); forged tensors have no second reading
differs      other figures, without a word
"""

import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.fuzz_files.inputs import write_inputs
from benchmarks.fuzz_files.judging import OUTCOMES, WRONG, choose
from benchmarks.fuzz_files.kinds import KINDS
from benchmarks.fuzz_files.worker import FILES, PRISTINE, Worker
from pipeline.spark.session import stop_spark


def main() -> None:
    """Run all mutations; exit with status 1 if one failed."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    first = int(options.get("seed", 1)) * 1_000_000
    seeds = range(first, first + int(options.get("mutations", 5000)))
    if "only" in options:
        seeds = range(int(options["only"]), int(options["only"]) + 1)
    work = Path(options.get("work") or tempfile.mkdtemp(prefix="entirespace-fuzz-")).resolve()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    failures: dict[str, list[str]] = defaultdict(list)
    started = time.monotonic()
    try:
        with Worker(work, KINDS, float(options.get("deadline_s", 20))) as worker:
            if not (work / PRISTINE).exists():
                write_inputs(work / FILES)
                stop_spark()
                worker.train()
            print(f"files written after {time.monotonic() - started:.0f} s", flush=True)
            for seed in seeds:
                kind, _ = choose(KINDS, seed)
                file, done, verdict = worker.judge(seed)
                table[kind.name][verdict.outcome] += 1
                if verdict.outcome in WRONG or "only" in options:
                    line = f"{seed}: {verdict.outcome}: {verdict.reader}: {file}: {done}: {verdict.why}"
                    print(line.encode("ascii", "backslashreplace").decode().replace("\0", "\\0"), flush=True)
                if verdict.outcome in WRONG:
                    failures[f"{kind.name}: {verdict.outcome}: {class_of(verdict.why)}"].append(str(seed))
    except KeyboardInterrupt:
        print("stopped early", flush=True)
    finally:
        if "work" not in options:
            shutil.rmtree(work, ignore_errors=True)
    print_table(table, time.monotonic() - started)
    for name, which in sorted(failures.items(), key=lambda entry: -len(entry[1])):
        print(f"{len(which):>5} × {name} (only={', '.join(which[:3])})")
    sys.exit(any(outcome in WRONG for counts in table.values() for outcome in counts))


def class_of(why: str) -> str:
    """Drop the paths, numbers and quoted values that tell the failures of one class apart."""
    if " at " in why and ".py:" in why:
        return why.split(": ")[0]
    return re.sub(r"/\S+|\w+-[0-9a-f]{16}\S*|[0-9]+|'[^']*'", "…", why)[:90]


def print_table(table: dict[str, Counter[str]], seconds: float) -> None:
    """Print how many mutations of each kind of file ended with which outcome."""
    print(f"\n{'':<26}" + "".join(f"{outcome:>13}" for outcome in OUTCOMES))
    for name, counts in [*table.items(), ("all", sum(table.values(), Counter()))]:
        print(f"{name:<26}" + "".join(f"{counts[outcome]:>13,}" for outcome in OUTCOMES))
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
