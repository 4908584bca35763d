"""The settings of the model and of its embeddings; loads no torch (see training.run.settings)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError
from training.feed.plan import UNITS
from training.feed.settings import POOLINGS, SamplingSettings
from training.model.own_tables import field_of

#: Of the towers' matrix products.
PRECISIONS = ("fp32", "tf32", "bf16")
MOST_COLUMNS = 1 << 16  # of a table or a layer
#: FBGEMM's kernels want a row to be a multiple of this many floats.
_ALIGNMENT = 4


def allocated_dim(dim: int) -> int:
    """Return the columns that a table allocates for `dim` used ones: 18 → 20. The rest is zero and stays zero."""
    return -(-dim // _ALIGNMENT) * _ALIGNMENT


@dataclass
class GraphSettings:
    """The group `model.graph`: statements such as `conversion | click and not daction`."""

    edges: list[str] = field(default_factory=list)  # conditional probabilities, a tower each
    #: `conversion`: over all impressions; `conversion | click`: clicked; {of: …, kind: …}: training.model.losses
    losses: list[Any] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)  # the name of a predicted column → what it is
    loss_weights: dict[str, float] = field(default_factory=dict)  # by loss, where it is not 1
    labels: dict[str, str] = field(default_factory=dict)  # node → the dataset's label, where it has another name
    heads: list[str] = field(default_factory=list)  # that a loss needs and no edge is, such as an imputed error


@dataclass
class TowerSettings:
    """The group `model.towers`."""

    hidden: list[int] = field(default_factory=lambda: [200, 80])  # empty: one linear layer
    dropout: float = 0.0  # after each hidden layer

    def __post_init__(self) -> None:
        if any(not 1 <= width <= MOST_COLUMNS for width in self.hidden):
            raise InputError(
                f"model.towers.hidden={self.hidden} has a layer outside [1, {MOST_COLUMNS}]; give other widths."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"model.towers.dropout={self.dropout} is outside [0, 1).")


@dataclass
class EmbeddingSettings:
    """The group `embedding`."""

    dim: int = 18  # columns of a table (ESMM §3.1)
    dims: dict[str, int] = field(default_factory=dict)  # by field: embedding.dims.item_id=128
    pooling: str = "sum"  # of a field's values, by the weights of the log: sum | mean
    poolings: dict[str, str] = field(default_factory=dict)  # by field: embedding.poolings.user_shops=mean
    init_bound: float = 0.05  # initial values are uniform in ± this

    def __post_init__(self) -> None:
        for key, dim in {"dim": self.dim, **{f"dims.{name}": dim for name, dim in self.dims.items()}}.items():
            if not 1 <= dim <= MOST_COLUMNS:
                raise InputError(f"embedding.{key}={dim} is not a width from 1 to {MOST_COLUMNS}; the default is 18.")
        if not 0.0 <= self.init_bound <= 1.0:
            raise InputError(f"embedding.init_bound={self.init_bound} is outside [0, 1]; the default is 0.05.")
        poolings = {"pooling": self.pooling, **{f"poolings.{name}": how for name, how in self.poolings.items()}}
        for key, how in poolings.items():
            if how not in POOLINGS:
                raise InputError(f"embedding.{key}={how} is not one of {', '.join(POOLINGS)}.")

    def check_fields(self, fields: Sequence[ManifestField]) -> None:
        """Raise InputError where `dims` or `poolings` name a field that the dataset lacks, or one without a table."""
        names = [entry.name for entry in fields]
        without_table = {entry.name: entry.kind for entry in fields if entry.stored != INDEX}
        for key, given in (("dims", self.dims), ("poolings", self.poolings)):
            for name in given:
                if name not in names:
                    raise InputError(
                        f"embedding.{key}.{name}: the dataset has no field {name}; it has {', '.join(names)}."
                    )
                if name in without_table:
                    raise InputError(
                        f"embedding.{key}.{name}: {name} is {without_table[name]} and goes to the towers as numbers, without "
                        "a table; leave it out."
                    )

    def dim_of(self, name: str) -> int:
        """Return the number of columns of the field, or table, `name` that the towers see."""
        return self.dims.get(field_of(name), self.dim)

    def pooling_of(self, fields: Sequence[ManifestField]) -> dict[str, str]:
        """Return field → sum | mean."""
        return {entry.name: self.poolings.get(entry.name, self.pooling) for entry in fields}


@dataclass
class ModelSettings:
    """The group `model`."""

    name: str = ""
    train_on: str = "impressions"  # what an epoch and a batch count: impressions | clicks (ESMM's BASE) | samples
    sampling: SamplingSettings = field(default_factory=SamplingSettings)  # the samples: how often an impression comes
    towers: TowerSettings = field(default_factory=TowerSettings)
    body: dict[str, Any] = field(default_factory=lambda: {"kind": "towers"})  # below the towers: training.model.bodies
    own_tables: bool = False  # tables of each head's own (ESMM-NS), in place of those that all heads share
    graph: GraphSettings = field(default_factory=GraphSettings)

    def __post_init__(self) -> None:
        if self.train_on not in UNITS:
            raise InputError(f"model.train_on={self.train_on} is not one of {', '.join(UNITS)}.")
        if self.sampling.draws and self.train_on != "samples":
            raise InputError(
                f"model.train_on={self.train_on} leaves model.sampling without effect; set model.train_on=samples, or "
                "give each impression once."
            )
        if self.own_tables and self.body.get("kind") != "towers":
            raise InputError(
                f"model.own_tables=true and model.body.kind={self.body.get('kind')}: a body shares what it reads between the heads; "
                "choose model.body.kind=towers, or share the tables."
            )

    def num_copies(self, num_heads: int) -> int:
        """Return how many tables each field has, for a graph of `num_heads`."""
        return num_heads if self.own_tables else 1
