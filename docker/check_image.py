"""Health check of our images: their jobs do on a tiny log what they are there for.

    with Java            jobs.simulate, then jobs.preprocess
    with torch           jobs.train: one step, and its checkpoint
    with both            jobs.score as well

Ends with status 0 and a line, or with the output of the job that failed. It writes below TMPDIR alone.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    """Run the jobs that this image has."""
    has_java, has_torch = shutil.which("java") is not None, importlib.util.find_spec("torch") is not None
    did = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, run = folder / "dataset", folder / "run"
        if has_java:
            job("simulate", f"out={folder / 'raw'}", "impressions=500", "rates=demo", "processes=1")
            job("preprocess", f"source.path={folder / 'raw'}", f"out={data}")
            did.append("preprocessed")
        else:
            from tiny_dataset import write_tiny_dataset

            write_tiny_dataset(data, num_contexts=20)
        if has_torch:
            job("train", f"data={data}", f"out={run}", "plan.batch_size=5000", "validation.split=null")
            assert (run / "checkpoints" / "step-00000001" / "checkpoint.json").exists(), (
                "jobs.train saved no checkpoint"
            )
            did.append("took a step")
        if has_java and has_torch:
            job("score", f"run={run}", f"data={data}", f"out={folder / 'scores'}")
            did.append("scored")
    print(f"healthy: {', '.join(did)}", flush=True)
    return 0


def job(name: str, *words: str) -> None:
    """Run a job; end this check with its output where it fails."""
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"jobs.{name} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
