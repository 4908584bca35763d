"""The systems that the papers compare, by the names of their tables, and those that came after: what trains each of them.

`SYSTEMS` is the list that docs/models.md prints and a reproduction of the tables walks. A system is trained by

    python -m jobs.train data=DATASET out=RUN <its settings> [ctr_run=RUN of its CTR network]

GBDT by jobs.gbdt, likewise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The papers: ESMM (SIGIR 2018) §3.1, ESM² (SIGIR 2020) §4.1, and what came after both.
ESMM, ESM2, LATER = "esmm", "esm2", "later"
TRAIN_JOB, GBDT_JOB = "jobs.train", "jobs.gbdt"

#: The CTR network of ESMM §3.1: its pCTR is in everybody's pCTCVR.
SHARED_CTR = ("model=ctr",)
_OF_ESM2 = ("experiment=esm2_paper",)


@dataclass(frozen=True)
class System:
    """One row of a table."""

    name: str
    paper: str
    settings: tuple[str, ...]  # of its job
    equation: str  # what is estimated and minimised, with its source
    #: Settings that the paper searches, with its values; to be chosen on validation.
    searched: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    #: Settings of the CTR network whose pCTR its pCTCVR = pCTR · pCVR takes in its paper, given to jobs.evaluate (to jobs.gbdt) as
    #: ctr_run=RUN; empty: it predicts pCTCVR itself.
    ctr: tuple[str, ...] = ()
    trains_with_ctr_run: bool = False  # it needs ctr_run=RUN of that network, its train split predicted
    needs_daction: bool = False  # a dataset with the label daction
    job: str = TRAIN_JOB  # and of its CTR network

    @property
    def model(self) -> str | None:
        """The configuration in conf/model/; None for trees."""
        models = (word.removeprefix("model=") for word in self.settings if word.startswith("model="))
        return next(models, None)


def _esmm(name: str, model: str, equation: str, searched: Mapping[str, tuple[float, ...]] | None = None) -> System:
    """Return a competitor of ESMM §3.1, whose pCTCVR takes pCTR of the shared CTR network."""
    return System(name, ESMM, (f"model={model}",), equation, searched or {}, SHARED_CTR, model.startswith("unbias"))


SYSTEMS: tuple[System, ...] = (
    _esmm("BASE", "base", "log loss of pCVR over the clicked (ESMM §2.2)"),
    _esmm(
        "AMAN",
        "aman",
        "log loss of pCVR over the clicked and a drawn share of the unclicked, as not converted (ESMM §3.1)",
        {"model.sampling.unclicked": (0.1, 0.2, 0.5, 1.0)},
    ),
    _esmm(
        "OVERSAMPLING",
        "oversampling",
        "log loss of pCVR over the clicked, the converted copied (ESMM §3.1)",
        {"model.sampling.converted": (2.0, 3.0, 5.0, 10.0)},
    ),
    _esmm(
        "UNBIAS", "unbias", "log loss of pCVR over the clicked that are not rejected with probability pCTR (ESMM §3.1)"
    ),
    _esmm(
        "UNBIAS, weighted",
        "unbias_weighted",
        "Σ w·log loss of pCVR over the clicked, w = min(1/pCTR, clip) over its mean (ESMM §3.1, by weights)",
    ),
    _esmm("DIVISION", "division", "pCVR = pCTCVR / pCTR of two networks, each by its log loss (ESMM §2.3, §3.1)"),
    _esmm("ESMM-NS", "esmm_ns", "as ESMM, each network with embeddings of its own (ESMM §3.1)"),
    _esmm("ESMM", "esmm", "log losses of pCTR and of pCTCVR = pCTR·pCVR over all impressions (ESMM eq. 1, 3)"),
    System(
        "GBDT",
        ESM2,
        ("target=cvr",),
        "150 trees of depth 8 by logistic loss over the clicked, rows and features drawn by 0.6 (ESM² §4.1.3)",
        ctr=("target=ctr",),
        job=GBDT_JOB,
    ),
    System(
        "DNN",
        ESM2,
        ("model=dnn", *_OF_ESM2),
        "one branch of ESM² alone: log loss of pCVR over the clicked (ESM² §4.1.2)",
        ctr=("model=dnn_ctr", *_OF_ESM2),
    ),
    System(
        "DNN-OS",
        ESM2,
        ("model=dnn_os", *_OF_ESM2),
        "as DNN, the positives copied (ESM² §4.1.2, which gives no rate: those of ESMM §3.1)",
        {"model.sampling.converted": (2.0, 3.0, 5.0, 10.0)},
        ctr=("model=dnn_os_ctr", *_OF_ESM2),
    ),
    System(
        "ESMM",
        ESM2,
        ("model=esmm_deep", *_OF_ESM2),
        "ESMM with ESM²'s network (ESM² §4.1.2)",
    ),
    System(
        "ESM2",
        ESM2,
        ("model=esm2", *_OF_ESM2),
        "log losses of pCTR, pCTAVR = y1·y2 and pCTCVR = y1·(y2·y3 + (1 − y2)·y4) over all impressions (ESM² eq. 1–4, 7–11)",
        needs_daction=True,
    ),
    System(
        "Shared bottom",
        LATER,
        ("model=shared_bottom",),
        "ESMM's losses; y_k = h_k(f(x)) (Ma et al., KDD 2018, eq. 1)",
    ),
    System(
        "MMoE",
        LATER,
        ("model=mmoe",),
        "ESMM's losses; y_k = h_k(Σ_i g_k(x)_i·f_i(x)), g_k = softmax(W_gk·x) (Ma et al., KDD 2018)",
    ),
    System(
        "PLE",
        LATER,
        ("model=ple",),
        "ESMM's losses; g_k mixes a task's own experts and the shared ones, layer by layer (Tang et al., RecSys 2020)",
    ),
    System(
        "AITM",
        LATER,
        ("model=aitm",),
        "z_t = Σ_u w_u·h1(u), u in {p_(t−1), q_t}, w = softmax(⟨h2(u), h3(u)⟩/√k); log losses of click and conversion over all "
        "impressions + 0.6·Σ max(ŷ_t − ŷ_(t−1), 0) (Xi et al., KDD 2021)",
    ),
    System(
        "ESCM2-IPS",
        LATER,
        ("model=escm2_ips",),
        "ESMM's losses + Σ o·δ/ô (Wang et al., SIGIR 2022)",
    ),
    System(
        "ESCM2-DR",
        LATER,
        ("model=escm2_dr",),
        "ESMM's losses + Σ δ̂ + o·(δ − δ̂)/ô + o·(δ − δ̂)²/ô (Wang et al., SIGIR 2022)",
    ),
    System(
        "DCMT",
        LATER,
        ("model=dcmt",),
        "ESMM's losses + Σ o·e(r, r̂)/ô + (1 − o)·e(1 − r, r̂*)/(1 − ô) + λ·|1 − (r̂ + r̂*)| (Zhu et al., ICDE 2023)",
    ),
)


def systems_of(paper: str) -> tuple[System, ...]:
    """Return the systems of a paper (ESMM, ESM2) or those that came LATER, in the order of its table."""
    return tuple(system for system in SYSTEMS if system.paper == paper)


def system_named(paper: str, name: str) -> System:
    """Return the system `name` of `paper`. Raises KeyError where there is none."""
    for system in systems_of(paper):
        if system.name == name:
            return system
    raise KeyError(f"{paper} has no system {name}")
