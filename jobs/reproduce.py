"""python -m jobs.reproduce table=esmm2 data=DATASET out=OUT seeds=5"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()

from jobs.entry import imports_not_collected, launch
from training.reproduction.settings import ReproduceSettings


def run(settings: ReproduceSettings) -> None:
    """Fill a table."""
    with imports_not_collected():  # torch takes seconds, which a wrong setting need not wait for
        from training.reproduction.run import reproduce

    reproduce(settings)


if __name__ == "__main__":
    launch("reproduce", ReproduceSettings, run)
