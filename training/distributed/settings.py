"""The settings of the ranks, of the placement of tables, of the optimizers and of the average of the weights.

Loads no torch (see training.run.settings).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError
from training.model.own_tables import field_of

SHARDINGS = ("table_wise", "row_wise", "data_parallel")
#: The optimizers of FBGEMM's fused kernels, by device.
EMBEDDING_OPTIMIZERS = {
    "cpu": ("rowwise_adagrad", "adagrad", "sgd"),
    "cuda": ("rowwise_adagrad", "adagrad", "sgd", "adam"),
}
DEVICE_CHOICES = ("auto", "cpu", "cuda")
#: How training multiplies the towers: training.model.towers, training.model.stacked_towers, and that compiled.
TOWERS = ("auto", "each", "stacked", "compiled")
#: Who moves ids and rows between the ranks: training.distributed.peer_exchange, torchrec_exchange.
EXCHANGES = ("auto", "peer", "torchrec")
#: Who places the tables: training.distributed.sharding by the settings, or TorchRec's planner.
PLANS = ("settings", "torchrec")
DECAYS = ("none", "linear", "cosine")
AVERAGES = ("polynomial", "none")
#: The rows of a table with a lower number are averaged after every step, the others in snapshots.
FREQUENT_ROWS = 1024
_BYTES_PER_WEIGHT = 4
_LARGEST_RATE = 1000.0
_LONGEST_TIMEOUT_S = 604_800.0
_LARGEST_POWER = 100.0
_MOST_SNAPSHOTS = 1_000_000


@dataclass
class WorldSettings:
    """The group `world` of the configuration."""

    device: str = "auto"  # cpu | cuda | auto: cuda where there is one
    timeout_s: float = 600.0  # a rank that is silent for longer ends the run
    deterministic: bool = True  # on a GPU: the same command, and a resumed run, give the same bits
    towers: str = (
        "auto"  # each | stacked: all in one pass | compiled: that compiled | auto: each on CPU, compiled on GPU
    )

    def __post_init__(self) -> None:
        for name, allowed in (("device", DEVICE_CHOICES), ("towers", TOWERS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"world.{name}={getattr(self, name)} is not one of {', '.join(allowed)}.")
        if not 0.0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise InputError(
                f"world.timeout_s={self.timeout_s} is not above 0 and at most {_LONGEST_TIMEOUT_S:g} s, a week; give seconds."
            )


@dataclass
class ShardingSettings:
    """The group `sharding`."""

    default: str = (
        "table_wise"  # a table on one rank | row_wise: a range of its rows on each | data_parallel: a copy on each
    )
    tables: dict[str, str] = field(
        default_factory=dict
    )  # by field: sharding.tables.item_id=row_wise; data_parallel for small ones
    row_wise_above_mb: float | None = None  # larger tables are cut by rows, unless `tables` names them
    exchange: str = "auto"  # peer: ours | torchrec: its own | auto: torchrec on several GPUs, else peer
    plan: str = "settings"  # who places tables that `tables` does not name: settings | torchrec: its planner

    def __post_init__(self) -> None:
        for name, allowed in (("exchange", EXCHANGES), ("plan", PLANS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"sharding.{name}={getattr(self, name)} is not one of {', '.join(allowed)}.")
        for key, kind in {
            "default": self.default,
            **{f"tables.{name}": to for name, to in self.tables.items()},
        }.items():
            if kind not in SHARDINGS:
                raise InputError(f"sharding.{key}={kind} is not one of {', '.join(SHARDINGS)}.")
        if self.row_wise_above_mb is not None and self.row_wise_above_mb <= 0:
            raise InputError(
                f"sharding.row_wise_above_mb={self.row_wise_above_mb} is not above 0; leave it out (null)."
            )

    def exchange_of(self, device: str, num_ranks: int) -> str:
        """Return who moves ids and rows between so many ranks on `device`: peer or torchrec."""
        if self.exchange != "auto":
            return self.exchange
        return "torchrec" if device == "cuda" and num_ranks > 1 else "peer"

    def check_fields(self, fields: Sequence[ManifestField]) -> None:
        """Raise InputError where `tables` names a field that the dataset lacks, or one without a table."""
        names = [entry.name for entry in fields]
        without_table = {entry.name: entry.kind for entry in fields if entry.stored != INDEX}
        for name in self.tables:
            if name not in names:
                raise InputError(f"sharding.tables.{name}: the dataset has no field {name}; it has {', '.join(names)}.")
            if name in without_table:
                raise InputError(
                    f"sharding.tables.{name}: {name} is {without_table[name]} and has no table; leave it out."
                )

    def kind_of(self, entry: ManifestField, columns: int) -> str:
        """Return the placement of the table of `entry`, `columns` wide: table_wise, row_wise or data_parallel."""
        if (name := field_of(entry.name)) in self.tables:
            return self.tables[name]
        megabytes = entry.num_rows * columns * _BYTES_PER_WEIGHT / 1e6
        if self.row_wise_above_mb is not None and megabytes > self.row_wise_above_mb:
            return "row_wise"
        return self.default


@dataclass
class ScheduleSettings:
    """The groups `optimizer.towers.schedule` and `optimizer.embeddings.schedule`: a factor of the learning rate.

    It rises to 1 over `warmup_steps`, then falls to `final` over `decay_steps` and stays there. It counts steps and not
    epochs, so a run that is continued for more epochs keeps its learning rates.
    """

    warmup_steps: int = 0  # the learning rate rises over these
    decay: str = "none"  # none | linear | cosine
    decay_steps: int = 0  # after the warm-up, the learning rate falls over these
    final: float = 0.0  # the learning rate after them, as a multiple of lr

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InputError(f"optimizer: schedule.warmup_steps={self.warmup_steps} is below 0; 0 has no warm-up.")
        if self.decay not in DECAYS:
            raise InputError(f"optimizer: schedule.decay={self.decay} is not one of {', '.join(DECAYS)}.")
        if (self.decay == "none") != (self.decay_steps == 0) or self.decay_steps < 0:
            raise InputError(
                f"optimizer: schedule.decay={self.decay} does not go with decay_steps={self.decay_steps}; "
                "give decay_steps above 0 with linear or cosine, and 0 with none."
            )
        if not 0.0 <= self.final <= 1.0:
            raise InputError(
                f"optimizer: schedule.final={self.final} is outside [0, 1]; give the last learning rate as a multiple of lr."
            )

    def factor(self, step: int) -> float:
        """Return the factor at `step` of the run, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        left = 1.0 - done if self.decay == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
        return self.final + (1.0 - self.final) * left


@dataclass
class EmbeddingOptimizerSettings:
    """The group `optimizer.embeddings`."""

    name: str = "rowwise_adagrad"  # adagrad | sgd; on GPU also adam
    lr: float = 0.1
    eps: float = 1e-8
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def __post_init__(self) -> None:
        known = sorted({name for names in EMBEDDING_OPTIMIZERS.values() for name in names})
        if self.name not in known:
            raise InputError(f"optimizer.embeddings.name={self.name} is not one of {', '.join(known)}.")
        _check_rates("optimizer.embeddings", self.lr, self.eps)


@dataclass
class TowerOptimizerSettings:
    """The group `optimizer.towers`: Adam.

    `clip_norm` bounds the norm of all towers' gradients together. The tables' gradients are not in it and are not clipped:
    the tables update inside the backward pass, before a global norm is known.
    """

    lr: float = 3e-3  # of Adam
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_norm: float = 0.0  # bounds the norm of the towers' gradients; 0: no bound. Tables are not clipped
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def __post_init__(self) -> None:
        _check_rates("optimizer.towers", self.lr, self.eps)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InputError(
                f"optimizer.towers.betas={list(self.betas)} are not two numbers in [0, 1); give [0.9, 0.999], as Adam has them."
            )
        if not self.clip_norm >= 0.0:
            raise InputError(f"optimizer.towers.clip_norm={self.clip_norm} is below 0; 0 does not clip.")


def _check_rates(group: str, lr: float, eps: float) -> None:
    if not 0.0 < lr <= _LARGEST_RATE:
        raise InputError(f"{group}.lr={lr} is not a learning rate above 0 and at most {_LARGEST_RATE:g}; try 0.001.")
    if not 0.0 < eps <= 1.0:
        raise InputError(f"{group}.eps={eps} is not above 0 and at most 1; it keeps a division finite, as 1e-8 does.")


@dataclass
class OptimizerSettings:
    """The group `optimizer`."""

    embeddings: EmbeddingOptimizerSettings = field(default_factory=EmbeddingOptimizerSettings)
    towers: TowerOptimizerSettings = field(default_factory=TowerOptimizerSettings)

    def check_device(self, device: str) -> None:
        """Raise InputError where `device` has no fused kernel for the embeddings' optimizer."""
        have = EMBEDDING_OPTIMIZERS[device]
        if self.embeddings.name not in have:
            raise InputError(
                f"optimizer.embeddings.name={self.embeddings.name} has no kernel on {device}; use one of {', '.join(have)}."
            )


@dataclass
class AverageSettings:
    """The group `average`: the running average of towers and tables, with which the model predicts.

    Polynomial decay (Shamir and Zhang, ICML 2013): the weights after step t count t^power times. At any step that is
    about the last 1/(power + 1) of the run, so it depends on no planned end. Training itself never reads it.
    """

    kind: str = "polynomial"  # polynomial | none: the last weights predict
    power: float = 3.0  # the weights after step t count t^power times; 0: all steps alike
    snapshots: int = 32  # an epoch, each a pass over all tables; towers and frequent rows are averaged after every step

    def __post_init__(self) -> None:
        if self.kind not in AVERAGES:
            raise InputError(f"average.kind={self.kind} is not one of {', '.join(AVERAGES)}.")
        if not 0.0 <= self.power <= _LARGEST_POWER:
            raise InputError(
                f"average.power={self.power} is not from 0 to {_LARGEST_POWER:g}; 3 averages about the last quarter."
            )
        if not 1 <= self.snapshots <= _MOST_SNAPSHOTS:
            raise InputError(
                f"average.snapshots={self.snapshots} is not from 1 to {_MOST_SNAPSHOTS}; each costs a pass over the tables."
            )

    @property
    def is_on(self) -> bool:
        """Whether there is an average."""
        return self.kind != "none"


@dataclass(frozen=True)
class AverageState:
    """What an average is of: a checkpoint keeps it beside the tensors."""

    power: float
    since: int  # steps of the run before the first one that counts
    steps: int  # of the run, up to the last one that counts
    snapshot: int  # likewise for the rows that are averaged in snapshots
