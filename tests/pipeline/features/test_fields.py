"""The catalogue refuses what it cannot mean, in one sentence."""

import pytest

from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.dataset.manifest import LABELS
from pipeline.dataset.schema import schema_of
from pipeline.errors import InputError
from pipeline.features.fields import catalogue


def test_the_order_of_the_configuration_is_the_order_of_the_catalogue_and_min_count_may_be_a_fields_own() -> None:
    entries = {"item": FieldSettings("205", "impression", min_count=5), "user": FieldSettings("101", "context")}
    found = catalogue(FeaturesSettings(entries, group="user"), 2)
    assert [(entry.name, entry.min_count) for entry in found.fields] == [("item", 5), ("user", 2)]
    assert [entry.name for entry in found.of_scope("context")] == ["user"]
    assert found["item"].raw_id == "205"


@pytest.mark.parametrize(
    ("entries", "group", "sentence"),
    [
        ({}, "", "features.fields is empty"),
        ({"Item": FieldSettings("1", "context")}, "", "has the name 'Item'"),
        ({"a": FieldSettings("1", "page")}, "", "features.fields.a.scope=page is not one of context, impression"),
        ({"a": FieldSettings("1", "context", "two")}, "", "features.fields.a.arity=two is not one of one, many"),
        ({"a": FieldSettings("1", "context", weighted=True)}, "", "is weighted with arity one"),
        ({"a": FieldSettings("1", "context", min_count=0)}, "", "min_count=0 is below 1"),
        ({"a": FieldSettings("1", "context"), "b": FieldSettings("1", "context")}, "", "raw_id=1 already belongs to a"),
        ({"a": FieldSettings("1", "context"), "b": FieldSettings("2", "impression")}, "b", "choose one of a"),
        ({"a": FieldSettings("1", "context", max_ids=0)}, "", "a.max_ids=0 is not between 1 and"),
        ({"a": FieldSettings("1", "context", hash_buckets=2**31)}, "", "a.hash_buckets=2147483648 is not between 1"),
        (
            {"a": FieldSettings("1", "context", max_ids=9, hash_buckets=5)},
            "",
            "a.max_ids=9 is for a field of kind categorical, .* is hashed",
        ),
        (
            {"a": FieldSettings("1", "context", kind="numeric", hash_buckets=5)},
            "",
            "a.hash_buckets=5 is for a field of kind categorical",
        ),
        ({"a": FieldSettings("1", "context", kind="text")}, "", "kind=text is not one of categorical, numeric"),
        ({"a": FieldSettings("1", "context", "many", kind="numeric")}, "", "a is numeric with arity=many"),
        (
            {"a": FieldSettings("1", "context", kind="numeric", min_count=3)},
            "",
            "a.min_count=3 is for .* is numeric",
        ),
        (
            {"a": FieldSettings("1", "context", kind="numeric"), "b": FieldSettings("1", "context", kind="numeric")},
            "",
            "raw_id=1 already belongs to a",
        ),
        (
            {"a": FieldSettings("1", "context"), "b": FieldSettings("1", "impression", kind="numeric")},
            "",
            "fields of different kinds and the same scope",
        ),
        ({"a": FieldSettings("1", "context", kind="numeric")}, "a", "a is not a categorical context field"),
    ],
)
def test_a_mistake_in_the_catalogue_is_named(entries: dict[str, FieldSettings], group: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        catalogue(FeaturesSettings(entries, group), 2)


@pytest.mark.parametrize("timed", [False, True])
def test_a_field_named_like_a_column_that_every_dataset_has_is_refused_and_its_raw_id_may_be(timed: bool) -> None:
    kinds = {"context": FieldSettings("user", "context"), "impression": FieldSettings("item", "impression")}
    schema = schema_of(catalogue(FeaturesSettings(kinds), 2, timed=True).fields, LABELS, timed=True)
    ours = [name for name in schema.names if name not in kinds]
    assert len(ours) == 7
    for name in [*ours, "tags__weight", "tags__length"]:
        for entry in kinds.values():
            with pytest.raises(InputError, match=f"features.fields.{name} has the name of a column .*; call the field"):
                catalogue(FeaturesSettings({name: entry}), 2, timed)
    assert (
        catalogue(FeaturesSettings({"clicked": FieldSettings("click", "context")}), 2, timed)["clicked"].raw_id
        == "click"
    )
