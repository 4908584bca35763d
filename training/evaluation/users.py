"""Each impression's user as a number: what GAUC is a mean over, and what varies in an interval."""

# Shapes: N impressions.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.evaluation.ranking import number_values, pieces_of
from training.evaluation.sorted_scores import Array
from training.feed.batch import UNKNOWN_GROUP


@dataclass(frozen=True)
class Users:
    """Numbers of known users, [0, num_known), in ascending order of group_id; behind them, contexts of unknown users."""

    number_N: Array
    num_known: int
    num_numbers: int
    num_unknown: int  # impressions of unknown users
    group_id: Array  # of each known user

    @classmethod
    def of(cls, group_id_N: Array, contexts: Callable[[], Array] | None = None) -> "Users":
        """Number the users; `contexts` returns a number of each impression's context, and is called where users are unknown.

        Without it each impression of an unknown user counts by itself.
        """
        number_N, distinct = number_values(pieces_of(group_id_N))
        if not len(distinct) or distinct[0] != UNKNOWN_GROUP:
            return cls(number_N, len(distinct), len(distinct), 0, distinct)
        unknown_N = number_N == 0  # UNKNOWN_GROUP is the lowest number
        num_unknown, num_known = int(np.count_nonzero(unknown_N)), len(distinct) - 1
        number_N -= 1
        if contexts is None:
            of_unknown, num_contexts = np.arange(num_unknown, dtype=np.int32), num_unknown
        else:
            of_unknown, distinct_contexts = number_values(pieces_of(contexts()[unknown_N]))
            num_contexts = len(distinct_contexts)
        number_N[unknown_N] = num_known + of_unknown
        return cls(number_N, num_known, num_known + num_contexts, num_unknown, distinct[1:])
