"""python -m jobs.compare runs=[A,B,C] [split=test] [out=comparison]"""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.entry import imports_not_collected, launch
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.locations import refuse_address
from pipeline.terminal import close_job


@dataclass
class CompareSettings:
    """conf/compare.yaml."""

    runs: list[str] = field(
        default_factory=list
    )  # evaluated runs, or RUN/evaluations/NAME, by path or address; differences are from the first
    split: str = "test"  # train | validation | test
    out: str = "comparison"  # writes OUT.md and OUT.html

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        if self.split not in SPLITS:
            raise InputError(f"split={self.split} is not one of {', '.join(SPLITS)}.")
        if len(self.runs) < 2:
            raise InputError(
                f"runs={self.runs} are fewer than two; give runs=[A,B], both evaluated on split={self.split}."
            )
        if len(set(self.runs)) < len(self.runs):
            raise InputError(f"runs={self.runs} names one twice; name each once.")


def run(settings: CompareSettings) -> None:
    """Compare evaluated runs, print the table, and write it as Markdown and HTML."""
    with imports_not_collected():
        from training.evaluation.comparison import compare, markdown_of, read_result
        from training.evaluation.comparison_page import write_comparison
        from training.run.evaluated_run import local_result

    comparison = compare(
        [read_result(str(local_result(path, settings.split)), settings.split) for path in settings.runs]
    )
    written = write_comparison(comparison, Path(settings.out))
    print(markdown_of(comparison), flush=True)
    close_job("comparison", str(written[0]), numbers=[f"{len(settings.runs)} runs"], pages=[str(written[1])])


if __name__ == "__main__":
    launch("compare", CompareSettings, run)
