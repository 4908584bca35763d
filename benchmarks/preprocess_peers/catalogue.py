"""What all peers write: the fields of Ali-CCP by scope and arity, under the names of our columns."""

from pathlib import Path

from omegaconf import OmegaConf

_FIELDS = OmegaConf.load(Path(__file__).parents[2] / "conf" / "features" / "aliccp.yaml").fields

PERIODS = ("train", "test")
MIN_COUNT = 2


def raw_ids(scope: str, arity: str) -> dict[str, str]:
    """Map raw id to name for the fields of a scope and an arity, in the order of the catalogue."""
    return {
        entry["raw_id"]: name for name, entry in _FIELDS.items() if (entry["scope"], entry["arity"]) == (scope, arity)
    }


def is_weighted(name: str) -> bool:
    """Find out whether a multi-valued field keeps its weights."""
    return bool(_FIELDS[name].get("weighted"))
