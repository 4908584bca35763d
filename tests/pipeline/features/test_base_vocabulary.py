"""Retired ids: those that no train split has had for too long, by a plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.features.base_vocabulary import extend, retire
from pipeline.features.vocabulary import Vocabulary

DAY = 86_400_000


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=30),
    st.booleans(),
    st.floats(0.5, 20),
)
def test_an_id_is_retired_if_it_is_not_in_the_train_split_and_was_last_seen_too_long_ago(
    rows: list[tuple[int, int]], with_texts: bool, max_age_days: float
) -> None:
    today = 40 * DAY
    ids = np.arange(100, 100 + len(rows))
    counts = np.array([count for count, _ in rows], np.int64)
    seen = np.array([day * DAY for _, day in rows], np.int64)
    texts = tuple(f"t{number}" for number in ids) if with_texts else ()
    found = retire(Vocabulary(ids, counts, texts, last_seen_N=seen), today, max_age_days * DAY)
    wanted = [
        (int(number), count, today if count else day * DAY)
        for number, (count, day) in zip(ids, rows, strict=True)
        if count or 40 - day <= max_age_days
    ]
    assert found.last_seen_N is not None
    assert list(zip(found.id_N.tolist(), found.count_N.tolist(), found.last_seen_N.tolist(), strict=True)) == wanted
    assert found.texts == (tuple(f"t{number}" for number, _, _ in wanted) if with_texts else ())
    assert found.table().column_names[-1] == "last_seen"


def test_where_the_base_says_nothing_ages_begin_today_and_new_ids_are_of_today() -> None:
    base = Vocabulary(np.array([7, 8]), np.zeros(2, np.int64))
    none = Vocabulary(np.empty(0, np.int64), np.empty(0, np.int64))
    new = Vocabulary(np.array([9]), np.array([3]))
    first = retire(extend(base, none, new), 5 * DAY, DAY)
    assert (first.id_N.tolist(), first.last_seen_N.tolist()) == ([7, 8, 9], [5 * DAY] * 3)  # type: ignore[union-attr]
    known = Vocabulary(np.array([8]), np.array([1]))
    second = retire(extend(first, known, Vocabulary(np.array([4]), np.array([2]))), 6 * DAY + 1, DAY)
    assert second.id_N.tolist() == [8, 4]
    assert second.last_seen_N.tolist() == [6 * DAY + 1] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["vocabulary.max_age_days=0", "source=simulated_shop"], "max_age_days=0.0 is not a number of days above 0"),
        (["vocabulary.max_age_days=nan", "source=simulated_shop"], "max_age_days=nan is not a finite number"),
        (["vocabulary.max_age_days=3"], r"max_age_days=3\.0 needs times, and source.name=aliccp has none"),
    ],
)
def test_an_age_that_is_none_or_has_no_times_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compose("preprocess", PreprocessSettings, ["out=OUT", "source.path=RAW", *overrides])
