"""What a batch job calls on its node: run a stage of the chain and note it in the ledger, as jobs.pipeline does here.

    python -m training.submission.run_stage run   STAGE -- jobs.evaluate run=RUN …   the whole stage, in this process's children
    python -m training.submission.run_stage begin STAGE -- jobs.train data=DATA …    before torchrun; status 3: nothing to do
    python -m training.submission.run_stage end   STAGE -- jobs.train data=DATA …    after it

STAGE is --name, --ledger (a folder), --output, --input (several) and --metrics-of. What the inputs were before torchrun
lies in the ledger's folder until the end.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, printable, writing
from pipeline.secrets import without_secrets
from training.run.stages import Ledger, Stage, identities, identity_of, run_stages

#: The exit status of `begin` where the stage is finished with these settings and inputs.
EXIT_DONE = 3


def words_of_stage(stage: Stage, ledger: str) -> list[str]:
    """Return the arguments that make this module parse `stage`."""
    words = [f"--name={stage.name}", f"--ledger={ledger}", f"--output={stage.output}"]
    words += [f"--input={place}" for place in stage.inputs]
    words += [f"--metrics-of={stage.metrics_of}"] if stage.metrics_of else []
    return [*words, "--", stage.job, *stage.words]


def main(arguments: Sequence[str]) -> int:
    """Do one of the three; return the exit status."""
    parser = argparse.ArgumentParser(prog="run_stage", allow_abbrev=False)
    parser.add_argument("what", choices=("run", "begin", "end"))
    for name in ("--name", "--ledger", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--metrics-of", default="")
    parser.add_argument("job")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(arguments)
    stage = Stage(given.name, given.job, tuple(given.words), tuple(given.input), given.output, given.metrics_of)
    folder = Path(given.ledger)
    try:
        with writing(f"out={folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        if given.what == "begin":
            return _note_begin(stage, folder)
        if given.what == "end":
            _note_end(stage, folder)
        else:
            run_stages([stage], Ledger(folder))
    except InputError as error:
        print(f"error: {printable(without_secrets(str(error)))}", file=sys.stderr, flush=True)
        return 2
    return 0


def _note_begin(stage: Stage, folder: Path) -> int:
    if Ledger(folder).is_done(stage):
        print(f"{stage.name}: finished, with these settings and inputs; nothing to do.", flush=True)
        return EXIT_DONE
    with writing(f"out={folder}"):
        write_whole(_begun(stage, folder), json.dumps(identities(stage.inputs)) + "\n", mode=0o600)
    return 0


def _note_end(stage: Stage, folder: Path) -> None:
    if identity_of(stage.output) == "":
        raise InputError(f"The stage {stage.name} has ended without {stage.output}; its own message stands above.")
    begun = _begun(stage, folder)
    try:
        inputs = json.loads(begun.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{begun} cannot be read ({error}); submit again: what is finished is kept.") from error
    Ledger(folder).note(stage, inputs)
    with writing(f"out={folder}"):
        begun.unlink()


def _begun(stage: Stage, folder: Path) -> Path:
    return folder / f".{stage.name}.begun.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
