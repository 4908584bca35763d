"""Run several commands of a checkout in one process, or in one process a rank.

Commands start slowly (a JVM, torch), so they run one after the other by runpy. Each sees what `python -m <module>
<arguments>` gives it: its own sys.argv, and the checkout as the first folder of sys.path.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT_S = 900.0  # of one process


def run_in_one_process(checkout: Path, work: Path, commands: list[list[str]], num_ranks: int = 1) -> None:
    """Run `python -m <command>` for each command, in one process, or under torchrun in one process a rank."""
    work.mkdir()
    (work / "commands.json").write_text(json.dumps(commands))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    ranks = [*torchrun, "--nproc-per-node", str(num_ranks)] if num_ranks > 1 else []
    command = [sys.executable, *ranks, str(Path(__file__).resolve()), str(work / "commands.json")]
    settings = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (work / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status != 0:
        raise RuntimeError(f"status {status}:\n{(work / 'output').read_text()[-4000:]}")


def run_commands(path: Path) -> None:
    """Run each command of the file `path` as `python -m` does; called in the process that `run_in_one_process` starts."""
    sys.path[0] = os.getcwd()  # as with -m; it was this file's folder
    own, end = os.getpid(), os._exit

    def exit_unless_own(status: int) -> NoReturn:
        """Raise SystemExit in this process, which has more commands to run; end a process that it has forked."""
        if os.getpid() == own:
            sys.exit(status)
        end(status)

    os._exit = exit_unless_own  # jobs.train and jobs.evaluate end their process with it, and so does multiprocessing
    for number, (module, *arguments) in enumerate(json.loads(path.read_text())):
        print(f"── {module} {' '.join(arguments)}", flush=True)
        sys.argv = [module, *arguments]
        if "RANK" in os.environ:
            _meet_at_new_port(path.with_name(f"port-{number}"))
        status: Any = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code
        if status:
            sys.exit(status)
        package = Path(str(sys.modules["jobs"].__file__))
        assert package.is_relative_to(os.getcwd()), f"{package} was run, which is not in this checkout"
    sys.stdout.flush()
    sys.stderr.flush()
    end(0)  # as a job of its own does: a thread of gloo may abort an interpreter that is being finalized


def _meet_at_new_port(port: Path) -> None:
    """Let the ranks meet at a new port for each command, as if torchrun had started them again.

    In torchrun's own store, a rank that is ahead would find the other rank's entries of the previous command.
    """
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port.with_suffix(".partial").write_text(str(free.getsockname()[1]))
        port.with_suffix(".partial").rename(port)
    while not port.exists():
        time.sleep(0.02)
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port.read_text()}


if __name__ == "__main__":
    run_commands(Path(sys.argv[1]))
