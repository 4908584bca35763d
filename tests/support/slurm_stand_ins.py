"""Stand-ins for Slurm's commands, which note how they were called, so that scripts run here for real without a cluster."""

import os
import subprocess
from pathlib import Path

STAND_INS = {
    "scontrol": """
echo "scontrol $*" >>"$CALLS"
case $* in
  "show hostnames"*) printf "%s\\n" ${HOSTS:-node1 node2} ;;
  *"show node"*) echo "NodeName=${!#} Arch=x86_64 NodeAddr=addr-${!#} NodeHostName=x" ;;
esac""",
    "scancel": 'echo "scancel $*" >>"$CALLS"; [[ ! -e $CALLS.srun ]] || kill -TERM "$(cat "$CALLS.srun")"',
    "srun": """
case $* in
  *run_stage\\ begin*) echo begin >>"$CALLS"; exit "${BEGIN:-0}" ;;
  *run_stage\\ end*) echo end >>"$CALLS"; exit 0 ;;
esac
echo $$ >"$CALLS.srun"; printf "%s\\0" "$@" >"$CALLS.argv"; env >"$CALLS.env"; ${SRUN_DOES:-true}""",
    "sbatch": """
number=$(($(grep -c ^sbatch "$CALLS" 2>/dev/null) + 41))
echo "sbatch $*" >>"$CALLS"
[[ $number != "${REFUSED:-}" ]] || { echo "sbatch: error: invalid partition specified: x" >&2; exit 1; }
echo "$number"
""",
    "sleep": "true",
}


class StandIns:
    """The commands, first on the PATH of `environment`."""

    def __init__(self, folder: Path) -> None:
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        self.calls_file = folder / "calls"
        self.environment = {
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "16",
        }
        self.environment.pop("OMP_NUM_THREADS", None)

    @property
    def calls(self) -> str:
        return self.calls_file.read_text() if self.calls_file.exists() else ""

    @property
    def srun_words(self) -> list[str]:
        """How srun was called for the job itself."""
        return Path(f"{self.calls_file}.argv").read_text().rstrip("\0").split("\0")

    @property
    def srun_environment(self) -> dict[str, str]:
        lines = Path(f"{self.calls_file}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def run(self, script: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the text of a script as a batch job."""
        path = self.calls_file.with_name("script.sbatch")
        path.write_text(script)
        environment = self.environment | variables
        return subprocess.run(
            ["bash", str(path)], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
