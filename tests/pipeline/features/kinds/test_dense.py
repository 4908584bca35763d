"""Dense fields: the settings they take, and the column that their vectors become."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.chunks.chunk import Parsed, numbers_of
from pipeline.chunks.line_columns import LINE_COLUMNS, VALUES_END
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.errors import InputError
from pipeline.features.fields import Catalogue, catalogue
from pipeline.features.kinds.dense import MAX_WIDTH, Dense


def catalogue_of(**fields: dict) -> Catalogue:
    entries = {name: FieldSettings(name, "impression", **settings) for name, settings in fields.items()}
    return catalogue(FeaturesSettings(entries), 2, timed=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a is dense without a width; say how many numbers its vector has: width: 64"),
        ({"width": 0}, f"a.width=0 is not between 1 and {MAX_WIDTH}"),
        ({"width": MAX_WIDTH + 1}, f"a.width={MAX_WIDTH + 1} is not between 1 and {MAX_WIDTH}"),
        (
            {"width": 3, "arity": "many"},
            "a is dense with arity=many, weighted=False; a dense field is one vector a line",
        ),
        ({"width": 3, "min_count": 3}, "a.min_count=3 is for a field of kind categorical, .* is dense"),
        ({"width": 3, "kind": "numeric"}, "a.width=3 is for a field of kind dense, and the field is numeric"),
        ({"standardize": False, "kind": "categorical"}, "a.standardize=False is for a field of kind dense"),
    ],
)
def test_settings_that_no_dense_field_can_have_are_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalogue_of(a={"kind": "dense"} | settings)


def test_the_layout_of_ali_ccp_has_no_vectors_and_says_so() -> None:
    fields = {"a": FieldSettings("1", "context", kind="dense", width=3)}
    with pytest.raises(InputError, match=r"features.fields.a is dense, .* one id with one number; .*source=events"):
        catalogue(FeaturesSettings(fields), 2)


def test_only_settings_that_are_given_stand_in_the_manifest() -> None:
    fields = {"a": FieldSettings("1", "context", kind="dense", width=3), "b": FieldSettings("2", "context")}
    found = FeaturesSettings(fields).determining()["fields"]
    assert found["a"]["width"] == 3
    assert "standardize" not in found["a"]
    assert "width" not in found["b"]


@hypothesis_settings(deadline=None)  # the first example compiles the kernel
@given(st.data())
def test_the_numbers_of_every_line_stand_where_a_loop_puts_them(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=4))  # None: a numeric field
    fields = catalogue_of(
        **{f"f{n}": {"kind": "numeric"} if w is None else {"kind": "dense", "width": w} for n, w in enumerate(widths)}
    )
    chosen = data.draw(st.permutations(fields.fields).map(lambda order: order[: len(order) // 2 + 1]))
    has = data.draw(st.lists(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)), max_size=5))
    sizes = [width or 1 for width in widths]
    wanted, values, ends = [], [], []
    for line in has:
        row = {entry.name: [math.nan] * sizes[n] for n, entry in enumerate(fields.fields)}
        for n, entry in enumerate(fields.fields):
            if line[n]:
                row[entry.name] = [float(len(values) + k) for k in range(sizes[n])]
                values += [(n, value) for value in row[entry.name]]
        ends.append(len(values))
        wanted.append([value for entry in chosen for value in row[entry.name]])
    line_LC = np.zeros((len(has), LINE_COLUMNS), np.int64)
    line_LC[:, VALUES_END] = ends
    field_V, weight_V = np.array([n for n, _ in values], np.int16), np.array([value for _, value in values], np.float32)
    found = numbers_of(
        Parsed(line_LC, field_V, np.zeros(len(values), np.int64), weight_V), fields.number_places(chosen)
    )
    np.testing.assert_array_equal(found, np.array(wanted, np.float32).reshape(found.shape))


def test_the_column_has_the_numbers_of_one_vector_after_the_other() -> None:
    numbers = np.array([[1, 2], [math.nan, math.nan], [3, 4]], np.float32)
    column = Dense().column(np.asfortranarray(numbers), {"width": 2})
    assert column.null_count == 0
    np.testing.assert_array_equal(column.to_numpy(), numbers.reshape(-1))
