"""The settings of the feed; loads no torch (see training.run.settings)."""

from dataclasses import dataclass

from pipeline.errors import InputError

#: Who decodes a column: ColumnPages where it can, or PyarrowColumn always.
PAGES, PYARROW = "pages", "pyarrow"
#: How the rows of a multi-valued field's table become one.
POOLINGS = ("sum", "mean")
#: What pCTR of another network decides about a clicked impression (ESMM §3.1, UNBIAS).
NO_P_CTR, REJECT, ACCEPT_INVERSE, WEIGH = "none", "reject", "accept_inverse", "weigh"
MOST_COPIES = 1000
MOST_THREADS, MOST_AHEAD = 256, 10_000
#: Of a rank, for one thread that reads and one that collates: on a CPU the towers take most of the cores.
_CORES_A_THREAD, _CORES_A_THREAD_ON_GPU = 4, 2


@dataclass
class FeedSettings:
    """The configuration group `feed`."""

    threads: int | None = None  # that read row groups, and as many that collate; null: by the cores of the rank
    row_groups_ahead: int = 2  # read or being read, before they are needed; one more for each further thread
    batches_ahead: int = 2  # collated before they are needed
    verify: str = "checksum"  # of each file against the manifest, when it is first opened: checksum | size
    decoder: str = PAGES  # of columns: pages (ours, faster) | pyarrow

    def __post_init__(self) -> None:
        for name in ("threads", "row_groups_ahead", "batches_ahead"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"feed.{name}={getattr(self, name)} is below 1; set it to 1 or more.")
        if (self.threads or 1) > MOST_THREADS or max(self.row_groups_ahead, self.batches_ahead) > MOST_AHEAD:
            raise InputError(
                f"feed: threads={self.threads}, row_groups_ahead={self.row_groups_ahead}, batches_ahead={self.batches_ahead} "
                f"are more than {MOST_THREADS} threads or {MOST_AHEAD} ahead; give fewer."
            )
        for name, allowed in (("verify", ("checksum", "size")), ("decoder", (PAGES, PYARROW))):
            if getattr(self, name) not in allowed:
                raise InputError(f"feed.{name}={getattr(self, name)} is not one of {', '.join(allowed)}.")

    def threads_for(self, num_cores: int, on_gpu: bool) -> int:
        """Return `threads`, or what suits a rank with so many cores: half of them beside a GPU, else a quarter."""
        return self.threads or max(1, num_cores // (_CORES_A_THREAD_ON_GPU if on_gpu else _CORES_A_THREAD))


@dataclass
class SamplingSettings:
    """The group `model.sampling`: how often an impression is in an epoch, for model.train_on=samples, or what it weighs.

    A number below 1 is the share that is drawn, anew in each epoch. 2.5 means two or three copies.
    """

    unclicked: float = 1.0  # copies of an impression without a click (the rate of AMAN)
    clicked: float = 1.0  # of a clicked one that did not convert
    converted: float = 1.0  # of a converted one (the rate of OVERSAMPLING)
    by_p_ctr: str = NO_P_CTR  # of the clicked, by pCTR of ctr_run (UNBIAS): none | reject | accept_inverse | weigh
    clip: float = 100.0  # bounds 1 / pCTR of accept_inverse and weigh

    def __post_init__(self) -> None:
        for name in ("unclicked", "clicked", "converted"):
            if not 0.0 <= getattr(self, name) <= MOST_COPIES:
                raise InputError(
                    f"model.sampling.{name}={getattr(self, name)} is not a number of copies from 0 to {MOST_COPIES}; 1 is each once."
                )
        known = (NO_P_CTR, REJECT, ACCEPT_INVERSE, WEIGH)
        if self.by_p_ctr not in known:
            raise InputError(f"model.sampling.by_p_ctr={self.by_p_ctr} is not one of {', '.join(known)}.")
        if not 1.0 <= self.clip < float("inf"):
            raise InputError(
                f"model.sampling.clip={self.clip} is not a finite number of 1 or more; it bounds 1 / pCTR."
            )

    @property
    def copies(self) -> tuple[float, float, float]:
        """The copies of an impression without a click, of a clicked one, of a converted one."""
        return self.unclicked, self.clicked, self.converted

    @property
    def draws(self) -> bool:
        """Whether an epoch is other than every impression once."""
        return self.copies != (1.0, 1.0, 1.0) or self.draws_by_p_ctr

    @property
    def draws_by_p_ctr(self) -> bool:
        """Whether the labels alone do not say how many samples a row group gives."""
        return self.by_p_ctr in (REJECT, ACCEPT_INVERSE)
