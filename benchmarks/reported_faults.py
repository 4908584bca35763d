"""Faults that a run cannot survive: each must end it with one error message on every rank, and leave a good checkpoint."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from benchmarks.torchrun_runs import Run, ranks_of
from pipeline.dataset.manifest import MANIFEST, load_manifest
from training.checkpoint.files import folder
from training.run.interrupts import REQUEUE

USR1 = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")


class NewRun(Protocol):
    """Bench.run."""

    def __call__(self, name: str, *overrides: str, data: Path | None = None) -> Run:
        """Make a run that is not started."""


@dataclass
class Outcome:
    """The outcome of a fault."""

    holds: bool
    message: str
    message_s: float  # from the fault, or from the start, to the message
    checkpoint: str


def expect_error(run: Run, process: "subprocess.Popen[bytes]", pattern: str, checkpoint: bool | None = True) -> Outcome:
    """Wait for the end: one error message that matches `pattern`, and a whole checkpoint if `checkpoint` asks for one."""
    message_s = run.first_error_s(process)
    ended = run.finish(process)
    errors = set(ended.errors)
    message = errors.pop() if len(errors) == 1 else f"{len(errors)} errors: {ended.stderr[-500:]}"
    step = run.last_step()
    holds = ended.status != 0 and re.search(pattern, message) is not None and checkpoint in (None, step > 0)
    return Outcome(holds, message, message_s, f"step {step}" if step else "none yet")


def resumes_after(number: int, name: str, *torchrun: str) -> Callable[[NewRun, int, Path], Outcome]:
    """Send a signal that asks the run to stop: it must leave REQUEUE, and the next start must resume and remove it."""

    def fault(new: NewRun, step: int, _data: Path) -> Outcome:
        run = new(name, "epochs=1")
        process = run.start(2, *torchrun)
        assert run.reach(step // 3, process)
        process.send_signal(number)
        message_s = run.first_error_s(process)
        ended, asked = run.finish(process), (run.out / REQUEUE).exists()
        stopped = run.last_step()
        done = run.finish(run.start(2))
        message = (
            f"status {ended.status}, {'a REQUEUE file' if asked else 'no REQUEUE file'}; then status {done.status} and "
            f"{'no REQUEUE file' if not (run.out / REQUEUE).exists() else 'a REQUEUE file'}"
        )
        holds = asked and done.status == 0 and not (run.out / REQUEUE).exists() and stopped > 0
        return Outcome(holds, message, message_s, f"step {stopped}")

    return fault


def stop_rank(rank: int) -> Callable[[NewRun, int, Path], Outcome]:
    """Send SIGSTOP to a rank. By default torchrun waits 30 s more for a process that ignores SIGTERM."""

    def fault(new: NewRun, step: int, _data: Path) -> Outcome:
        run = new(f"stopped{rank}")
        process = run.start(2, "--shutdown-timeout", "2")
        assert run.reach(step, process)
        os.kill(ranks_of(process)[rank], signal.SIGSTOP)
        return expect_error(run, process, "Another rank ended, or did not answer within world.timeout_s")

    return fault


def full_disk(new: NewRun, _step: int, _data: Path) -> Outcome:
    """Run on a tmpfs with room for one checkpoint and a half; its files are copied out of the namespace at the end."""
    sized = new("sized", "epochs=1")
    sized.finish(sized.start(2))
    newest = max(folder(sized.out).glob("step-*"))
    kib = sum(file.stat().st_size for file in newest.iterdir()) * 3 // 2 // 1024
    run = new("full", "checkpoint.keep=1", "log.every_steps=1000")
    script = (
        'mkdir -p "$0" && mount -t tmpfs -o size="$1"k none "$0" && shift && "$@"; s=$?; cp -a "$0" "$0".kept; exit $s'
    )
    run.within = ["unshare", "-rm", "sh", "-c", script, str(run.out), str(kib)]
    process = run.start(2)
    message_s = run.first_error_s(process)
    process.wait()
    shutil.rmtree(run.out, ignore_errors=True)
    Path(f"{run.out}.kept").rename(run.out)
    left = [path.name for path in folder(run.out).glob(".*")]
    found = expect_error(run, process, "cannot be written .*No space left on device")
    return Outcome(found.holds and not left, found.message, message_s, found.checkpoint)


def damage_shards(name: str, damage: Callable[[Path], None], pattern: str) -> Callable[[NewRun, int, Path], Outcome]:
    """Apply `damage` to every training shard during the run."""

    def fault(new: NewRun, step: int, data: Path) -> Outcome:
        copy = Path(f"{new(name).out}.data")
        shutil.copytree(data, copy)
        run = new(name, data=copy)
        process = run.start(2)
        assert run.reach(step, process)
        for file in load_manifest(str(copy)).files_of("train"):
            damage(copy / file.path)
        return expect_error(run, process, pattern)

    return fault


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file, in place."""
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))


def out_of_range(new: NewRun, _step: int, data: Path) -> Outcome:
    """Write an index beyond its table into the last row group of a shard, with the right checksum."""
    copy = Path(f"{new('range').out}.data")
    shutil.copytree(data, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    field = next(entry for entry in load_manifest(str(copy)).fields if entry.name == "item_id")
    file = [entry for entry in manifest["files"] if entry["split"] == "train"][-1]
    with pq.ParquetFile(copy / file["path"]) as parquet:
        groups = [parquet.read_row_group(number) for number in range(parquet.num_row_groups)]
    column = groups[-1].column("item_id").combine_chunks()
    values = column.values.to_numpy().copy()
    values[len(values) // 2] = field.num_rows
    lists = pa.ListArray.from_arrays(column.offsets, pa.array(values, pa.int32()))
    groups[-1] = groups[-1].set_column(groups[-1].schema.get_field_index("item_id"), "item_id", lists)
    with pq.ParquetWriter(copy / file["path"], groups[0].schema, compression="zstd", use_dictionary=False) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    content = (copy / file["path"]).read_bytes()
    file |= {"bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)}
    del manifest["content_xxh3"]  # as a manifest of an earlier release, which has no checksum of itself
    (copy / MANIFEST).write_text(json.dumps(manifest))
    run = new("range", data=copy)
    return expect_error(run, run.start(2), rf"row group {len(groups) - 1}.*item_id", checkpoint=None)


def not_finite(new: NewRun, _step: int, _data: Path) -> Outcome:
    """Train with a learning rate that makes the loss infinite."""
    run = new("nan", "optimizer.embeddings.lr=1e38", "optimizer.towers.lr=1e38")
    return expect_error(run, run.start(2), "is not finite at step .* no weight was touched", checkpoint=False)


def orphaned(new: NewRun, step: int, _data: Path) -> Outcome:
    """Kill torchrun alone, so that its ranks train on: a second start must not write beside them."""
    run = new("orphaned", "epochs=100000")  # so that they do not end before the second start
    process = run.start(2)
    assert run.reach(step // 2, process)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    found = expect_error(run, run.start(2), "is being trained already, by process")
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):  # it has noticed that the other one ended
            os.kill(pid, signal.SIGKILL)
    return found


FAULTS: dict[str, Callable[[NewRun, int, Path], Outcome]] = {
    "SIGTERM to torchrun": resumes_after(signal.SIGTERM, "term"),
    "SIGUSR1 to torchrun, which handles it": resumes_after(signal.SIGUSR1, "usr1", *USR1),
    "rank 1 stopped (SIGSTOP)": stop_rank(1),
    "rank 0 stopped (SIGSTOP)": stop_rank(0),
    "disk full at a checkpoint": full_disk,
    "shards deleted": damage_shards("deleted", Path.unlink, r"\.parquet is missing, though the manifest names it"),
    "shards changed in place": damage_shards(
        "changed", flip_a_bit, r"\.parquet has the checksum .* its bytes have changed"
    ),
    "index out of range in a shard": out_of_range,
    "loss not finite": not_finite,
    "torchrun alone killed, and the run started again": orphaned,
}
