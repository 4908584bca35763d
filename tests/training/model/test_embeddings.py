import math

import pytest

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError
from training.model.embeddings import rowwise_lr
from training.model.settings import EmbeddingSettings, allocated_dim

FIELDS = [
    ManifestField(name, name, "context", "one", False, 10, f"vocabulary/{name}.parquet", "0" * 16)
    for name in ("a", "b", "c")
]


def test_a_table_allocates_a_multiple_of_four_columns() -> None:
    assert [allocated_dim(dim) for dim in (1, 4, 17, 18, 20, 128)] == [4, 4, 20, 20, 20, 128]
    assert rowwise_lr(0.1, 18) == pytest.approx(0.1 * math.sqrt(18 / 20))
    assert rowwise_lr(0.1, 128) == 0.1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 0}, r"embedding\.dim=0 is not a width from 1 to 65536"),
        ({"dims": {"a": 0}}, r"embedding\.dims\.a=0 is not a width from 1 to 65536"),
        ({"pooling": "max"}, r"embedding\.pooling=max is not one of sum, mean"),
        ({"poolings": {"a": "max"}}, r"embedding\.poolings\.a=max"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        EmbeddingSettings(**settings)


def test_a_setting_for_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"embedding\.dims\.item_idd: the dataset has no field item_idd; it has a, b, c"
    ):
        EmbeddingSettings(dims={"item_idd": 8}).check_fields(FIELDS)
    settings = EmbeddingSettings(poolings={"b": "mean"})
    settings.check_fields(FIELDS)
    assert settings.pooling_of(FIELDS) == {"a": "sum", "b": "mean", "c": "sum"}
