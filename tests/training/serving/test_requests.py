"""Raw values of a request: what they become, and one clear sentence for each that no log could have."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.lookup_table import lookup_of
from pipeline.dataset.manifest import Manifest, ManifestField
from pipeline.errors import InputError
from pipeline.kernels.decimal_texts import parse_decimals
from training.export.standalone.scoring import ExportedModel, RequestError
from training.serving.open_run import FieldIds
from training.serving.requests import RequestEncoder

LARGEST = 2**63 - 1
IDS = np.array([7, 1_000_000_007, 12, LARGEST], np.int64)  # rows 2, 3, 4, 5
FIELDS = (
    ManifestField("user", "1", "context", "one", False, 6, "v/user", "0"),
    ManifestField("shops", "2", "context", "many", True, 6, "v/shops", "0"),
    ManifestField("age", "3", "context", "one", False, 5, "", "", kind="bucketized", parameters={"boundaries": [18.0, 0.7e3]}),
    ManifestField("item", "4", "impression", "one", False, 12, "", "", hash_buckets=10),
    ManifestField("tags", "5", "impression", "many", False, 6, "v/tags", "0"),
    ManifestField("price", "6", "impression", "one", False, 0, "", "", kind="numeric", mean=1.0, std=2.0),
    ManifestField("image", "7", "impression", "one", False, 0, "", "", kind="dense", parameters={"width": 3, "standardize": False}),
)  # fmt: skip
EVENTS = {"source": {"name": "events", "events": {"nulls": ["", "NULL"]}}}


def encoder(settings: dict[str, Any] | None = None) -> RequestEncoder:
    manifest = Manifest(settings or {}, "", (), FIELDS, {}, (), {}, {})
    ids = [FieldIds(IDS if entry.vocabulary else IDS[:0], entry.hash_buckets) for entry in FIELDS]
    return RequestEncoder(manifest, lookup_of(ids))


def encoded(context: Any, *candidates: Any, settings: dict[str, Any] | None = None) -> dict[str, list[Any]]:
    found = encoder(settings).encode([context], [list(candidates)])
    return {name: column.tolist() for name, column in (found.contexts | found.impressions).items()}


def test_each_form_of_a_value_becomes_its_row_or_number() -> None:
    found = encoded(
        {"user": "1000000007", "shops": [7, "12", "8"], "shops__weight": [1, 0.5, -2.0], "age": 18},
        {"item": 3, "tags": (LARGEST,), "price": 2, "image": [1, 2.5, 3]},
        {},
        {"item": "3", "tags": np.array([12, 7]), "price": None, "image": []},
    )
    assert found["user"] == [3]
    assert (found["shops"], found["shops__length"], found["shops__weight"]) == ([2, 4, 1], [3], [1.0, 0.5, -2.0])
    assert found["age"] == [3]
    assert found["item"][0] == found["item"][2] >= 2
    assert found["item"][1] == 0
    assert (found["tags"], found["tags__length"]) == ([5, 4, 2], [1, 0, 2])
    assert found["price"][0] == 2.0
    assert np.isnan(found["price"][1:]).all()
    assert found["image"][0] == [1.0, 2.5, 3.0]
    assert np.isnan(found["image"][1:]).all()


def test_a_number_before_the_first_boundary_is_in_the_first_bucket_and_a_missing_one_in_none() -> None:
    ages = [17.999, 18, 699.99, 700, None]
    rows = [encoded({"age": age}, {})["age"][0] for age in ages]
    assert rows == [2, 3, 3, 4, 0]


def test_an_event_log_has_texts_as_ids_and_texts_that_mean_missing() -> None:
    known = encoded({"user": "7", "shops": []}, {"tags": ["007", "ada"]}, settings=EVENTS)
    assert known["user"] == [2]
    assert known["tags"] == [1, 1]  # other ids than 7: their hashes
    assert encoded({"user": "NULL"}, {}, settings=EVENTS)["user"] == [0]
    assert encoded({"user": "007"}, {})["user"] == [2]  # digits of Ali-CCP are a number, with zeros too
    by_text = [encoded({}, {"item": text}, settings=EVENTS)["item"][0] for text in ("ada", "bob", "-5")]
    assert by_text[2] == encoded({}, {"item": -5}, settings=EVENTS)["item"][0]


WRONG: list[tuple[Any, list[Any], str]] = [
    ({"users": 1}, [{}], "users is no field of contexts; did you mean user?"),
    ({"item": 1}, [{}], "item is a field of candidates, and stands in contexts"),
    ({"user__weight": [1]}, [{}], "user__weight is no field of contexts"),
    ({"user": 1.0}, [{}], "user: 1.0 is neither a whole number nor the decimal text of one"),
    ({"user": True}, [{}], "user: True is neither"),
    ({"user": "12x"}, [{}], "user: '12x' is neither"),
    ({"user": "\u0661"}, [{}], "is neither"),
    ({"user": ""}, [{}], "user: '' is neither"),
    ({"user": [7]}, [{}], r"user: \[7\] is neither"),
    ({"user": -1}, [{}], "user: -1 is outside 0 to"),
    ({"user": LARGEST + 1}, [{}], "is outside 0 to"),
    ({"user": "9" * 5000}, [{}], "is outside 0 to"),
    ({"shops": "7", "shops__weight": [1]}, [{}], "shops: '7' is no list of ids"),
    ({"shops": [7]}, [{}], "shops__weight has 0 weights, and shops has 1 values"),
    ({"shops": [7], "shops__weight": [1, 2]}, [{}], "shops__weight has 2 weights, and shops has 1 values"),
    ({"shops": [7], "shops__weight": [float("nan")]}, [{}], "shops__weight: nan is no finite number"),
    ({"shops": [7], "shops__weight": ["1"]}, [{}], "shops__weight: '1' is no number"),
    ({"shops": [None], "shops__weight": [1]}, [{}], "shops: None means missing, and stands in a list"),
    ({}, [{"price": float("inf")}], "price: inf is no finite number"),
    ({}, [{"price": 1e39}], r"price: 1e\+39 is no finite number of float32"),
    ({}, [{"price": 10**400}], "is no finite number"),
    ({}, [{"price": "3"}], "price: '3' is no number"),
    ({}, [{"price": False}], "price: False is no number"),
    ({}, [{"image": [1, 2]}], r"image: \[1, 2\] has 2 numbers, and the field has 3"),
    ({}, [{"image": [1, 2, float("nan")]}], "image: nan is no finite number"),
    ({}, [], "candidates is empty"),
    ({}, [3], "candidates has int in it"),
    (None, [{}], "contexts has NoneType in it"),
]


@pytest.mark.parametrize(("context", "candidates", "sentence"), WRONG)
def test_a_value_that_no_log_could_have_is_refused_in_one_sentence(
    context: Any, candidates: list[Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        encoder().encode([context], [candidates])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_contexts_and_their_lists_of_candidates_are_as_many() -> None:
    with pytest.raises(InputError, match="There are 2 contexts and candidates for 1"):
        encoder().encode([{}, {}], [[{}]])
    with pytest.raises(InputError, match=r"candidates\[1\] is empty"):
        encoder().encode([{}, {}], [[{}], []])
    with pytest.raises(InputError, match="candidates is dict"):
        encoder().encode([{}], [{"item": 1}])  # type: ignore[list-item]


@given(
    st.lists(
        st.integers(0, 10**18 - 1).map(str)
        | st.sampled_from(["0", "007", "", " 1", "+1", "1_0", "٣", "1\n2", "9" * 19])
    ),
    st.booleans(),
)
def test_decimal_texts_are_parsed_as_int_does_or_not_at_all(texts: list[str], zeros: bool) -> None:
    found = parse_decimals(texts, may_begin_with_zero=zeros)
    pattern = r"[0-9]{1,18}" if zeros else r"0|[1-9][0-9]{0,17}"
    if all(re.fullmatch(pattern, text) for text in texts):
        assert found is not None
        assert found.tolist() == [int(text) for text in texts]
    else:
        assert found is None


ID = st.integers(0, 30) | st.sampled_from(
    [
        7,
        "7",
        12,
        "12",
        LARGEST,
        str(LARGEST),
        "1000000007",
        "000",
        "ada",
        -3,
        "-3",
        "",
        "NULL",
        None,
        True,
        1.0,
        "9" * 19,
    ]
)
NUMBER = st.none() | st.integers(-5, 5) | st.floats(width=32) | st.sampled_from([True, "1", 10**400])
CONTEXT = st.fixed_dictionaries(
    {},
    optional={
        "user": ID,
        "shops": st.lists(ID, max_size=3),
        "shops__weight": st.lists(NUMBER, max_size=3),
        "age": NUMBER,
    },
)
CANDIDATE = st.fixed_dictionaries(
    {},
    optional={
        "item": ID,
        "tags": st.none() | st.lists(ID, max_size=3),
        "price": NUMBER,
        "image": st.none() | st.lists(NUMBER, max_size=3),
        "x": ID,
    },
)


class Standalone(ExportedModel):
    """The exported file's own encoding, without a graph."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        from training.export.lookup_files import save_lookup
        from training.export.schema import form_of

        events = settings.get("source", {}).get("events")
        self.folder = folder
        self._texts, self._nulls = events is not None, set(events["nulls"] if events else ())
        fields = [
            {"name": entry.name, "scope": {"context": "context"}.get(entry.scope, "candidate"), "form": form_of(entry),
             "many": entry.arity == "many", "weighted": entry.weighted, "hash_buckets": entry.hash_buckets, "width": 3,
             "vocabulary": save_lookup(folder, entry.name, IDS) if entry.vocabulary else {}, **entry.parameters}
            for entry in FIELDS
        ]  # fmt: skip
        self._fields = {scope: [one for one in fields if one["scope"] == scope] for scope in ("context", "candidate")}
        self._keys = {
            scope: {key for one in chosen for key in [one["name"]] + [f"{one['name']}__weight"] * one["weighted"]}
            for scope, chosen in self._fields.items()
        }
        self._rows_of = {one["name"]: self._lookup(one) for one in fields if one["form"] == "id"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[RequestEncoder, Standalone]]:
    return [
        (encoder(settings), Standalone(tmp_path_factory.mktemp("twin"), settings))
        for settings in (dict[str, Any](), EVENTS)
    ]


@given(st.sampled_from([0, 1]), CONTEXT, st.lists(CANDIDATE, min_size=1, max_size=3))
def test_the_exported_file_takes_and_refuses_what_the_scorer_does(
    twins: list[tuple[RequestEncoder, Standalone]],
    which: int,
    context: dict[str, Any],
    candidates: list[dict[str, Any]],
) -> None:
    ours, exported = twins[which]
    try:
        found = ours.encode([context], [candidates])
    except InputError:
        with pytest.raises(RequestError):
            exported._encode("context", [context]) | exported._encode("candidate", candidates)
        return
    theirs = exported._encode("context", [context]) | exported._encode("candidate", candidates)
    expected = found.contexts | found.impressions
    assert theirs.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(theirs[name], column, err_msg=name)
