"""python -m jobs.export run=RUN out=EXPORT [tables=int8] [formats=[pt2,onnx]]"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

import shlex
import time

from jobs.entry import imports_not_collected, launch
from pipeline.terminal import close_job
from training.export.settings import ExportSettings


def run(settings: ExportSettings) -> None:
    """Export the model of a run, and print what was compared."""
    # Loaded here: torch and TorchRec take seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.export.folder import export_run

    started = time.monotonic()
    for line in export_run(settings):
        print(line, flush=True)
    server = shlex.join(["python", f"{settings.out}/server.py"])
    close_job("export", settings.out, time.monotonic() - started, following=server)


if __name__ == "__main__":
    end_on_signals()
    launch("export", ExportSettings, run)
