"""Where the parts of a split come from: the fields of the dataset, and the users' purchases in its train split."""

# Shapes: C contexts, B impressions, N contexts or impressions.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.decode import Decoder, read_raw_ids
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, ManifestField, dataset_files
from pipeline.errors import InputError
from training.evaluation.prediction_files import PredictionFiles
from training.evaluation.ranking import number_values, pieces_of
from training.evaluation.settings import PURCHASES
from training.evaluation.slices import Slicing, slicing_by_activity, slicing_of_users
from training.evaluation.users import Users
from training.feed.batch import UNKNOWN_GROUP, Bags, Batch
from training.feed.feed import Feed
from training.feed.plan import Plan

#: Slices that are no fields: by the user's impressions in the split, and by the user's purchases in the train split.
USER_IMPRESSIONS, USER_PURCHASES = "user_impressions", "user_purchases"
#: Before the name of a field, in the columns of predictions.
PREFIX = "slice_"
_PURCHASES_BATCH = 1 << 16


class SlicedField(NamedTuple):
    """A field to slice by, and its place among the bags of its scope."""

    entry: ManifestField
    place: int

    def indices(self, batch: Batch) -> NDArray[np.int32]:
        """Return the index of each impression's value: int32 [B], MISSING where it has none."""
        if self.entry.scope == "impression":
            return _single_values(batch.impression, self.place, batch.num_impressions)
        return _single_values(batch.context, self.place, batch.num_contexts)[batch.context_of_impression.cpu().numpy()]


def sliced_fields(slices: Sequence[str], manifest: Manifest) -> list[SlicedField]:
    """Return the fields among `slices`. Raises InputError for a name that is none, or a field that is no single index."""
    found = []
    for name in slices:
        if name in (USER_IMPRESSIONS, USER_PURCHASES):
            continue
        entry = next((entry for entry in manifest.fields if entry.name == name), None)
        single = [entry.name for entry in manifest.fields if entry.stored == INDEX and entry.arity == "one"]
        if entry is None or entry.name not in single:
            raise InputError(
                f"slices: {name} is not one of {USER_IMPRESSIONS}, {USER_PURCHASES} or a single-valued field with a table "
                f"of the dataset: {', '.join(single)}."
            )
        found.append(SlicedField(entry, manifest.fields_of(entry.scope, INDEX).index(entry)))
    return found


def slicings_of(
    slices: Sequence[str], predictions: PredictionFiles, users: Users, data: str, manifest: Manifest
) -> list[Slicing]:
    """Divide the impressions of `predictions` by each of `slices`; raw ids come from the vocabularies of `data`."""
    found = []
    for name in slices:
        if name == USER_IMPRESSIONS:
            found.append(slicing_by_activity(users))
        elif name == USER_PURCHASES:
            purchases = purchases_in_train(data, manifest, users.group_id)
            found.append(slicing_of_users(name, users, purchases, PURCHASES))
        else:
            (field,) = sliced_fields([name], manifest)
            number_N, index = number_values(pieces_of(predictions[PREFIX + name]))
            ids = read_raw_ids(dataset_files(data), field.entry, index) if field.entry.vocabulary else {}
            decoder = Decoder({name: ids})
            found.append(Slicing(name, number_N, [decoder.text(field.entry, value) for value in index.tolist()]))
    return found


def purchases_in_train(data: str, manifest: Manifest, group_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the conversions of each of `group_id`, ascending, in the train split of the dataset."""
    plan = Plan(manifest.files_of("train"), batch_size=_PURCHASES_BATCH, lanes=1, seed=None)
    feed = Feed(data, manifest, "train", plan, rank=0, world_size=1, pooling={}, fields=())
    buyers = []
    try:
        for batch in feed.batches(0):
            bought = (batch.labels["click"] > 0) & (batch.labels["conversion"] > 0)
            group = batch.group_id[batch.context_of_impression[bought]].numpy()
            buyers.append(group[group != UNKNOWN_GROUP])
    finally:
        feed.close()
    buyer = np.concatenate([np.empty(0, np.int64), *buyers])
    place = np.searchsorted(group_id, buyer)
    known = place < len(group_id)
    known[known] = group_id[place[known]] == buyer[known]
    return np.bincount(place[known], minlength=len(group_id))


def _single_values(bags: Bags, place: int, num_rows: int) -> NDArray[np.int32]:
    """Return the one value of field `place` of each row; 0, which is MISSING, where it has none."""
    length_FN = bags.lengths.cpu().numpy().reshape(-1, num_rows)
    start = int(length_FN[:place].sum())
    values = np.zeros(num_rows, np.int32)
    has_one = length_FN[place] > 0
    values[has_one] = bags.values.cpu().numpy()[start : start + int(length_FN[place].sum())]
    return values
