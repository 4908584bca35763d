"""docs/tour.md, executable: one impression from its raw line to a gradient in the embedding row of its item."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from raw_log import RawLog, context_line, impression_line, key_of
from tiny_run import take_steps, tiny_settings

from pipeline.aliccp import parse
from pipeline.aliccp.field_probe import names_of
from pipeline.chunks import line_columns
from pipeline.config.preprocess import PreprocessSettings
from pipeline.features.fields import catalogue
from pipeline.preprocess import preprocess
from training.distributed.settings import EmbeddingOptimizerSettings
from training.distributed.world import join
from training.feed.batch import Bags, Batch
from training.run.trainer import Trainer

SAMPLE, ITEM, CATEGORY = 7, 1042, 55
USER_CATEGORIES = [("109_14", 55, "0.69315"), ("109_14", 56, "1.38629")]
LEARNING_RATE = 0.5


def shop_log() -> RawLog:
    """Impression 7 shows item 1042 to user 11 and is clicked; user 12 is shown the items 1042 and 1043 without a click."""
    log = RawLog()
    item, other = (
        [("205", number, "1.0"), ("206", CATEGORY, "1.0"), ("508", CATEGORY, "0.69315")] for number in (ITEM, 1043)
    )
    contexts = [
        context_line(key_of(1), [("101", 11, "1.0"), *USER_CATEGORIES]),
        context_line(key_of(2), [("101", 12, "1.0"), USER_CATEGORIES[0]]),
    ]
    impressions = [
        impression_line(SAMPLE, 1, 0, key_of(1), item),
        impression_line(8, 0, 0, key_of(2), item),
        impression_line(9, 0, 0, key_of(2), other),
    ]
    for period in ("train", "test"):
        log.lines[f"common_features_{period}"] = contexts
        log.lines[f"sample_skeleton_{period}"] = impressions
    return log


@pytest.mark.usefixtures("spark")
def test_one_impression_from_its_raw_line_to_a_gradient_in_the_row_of_its_item(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    # 1. The raw line. Features are joined by \x01; each is a field, \x02, a raw id, \x03 and a weight.
    log = shop_log()
    line = log.lines["sample_skeleton_train"][0]
    assert line == b"7,1,0,9e3779b97f4a7c15,3,205\x021042\x031.0\x01206\x0255\x031.0\x01508\x0255\x030.69315"

    # 2. The byte kernel reads it in one pass (pipeline/aliccp/parse.py).
    settings = preprocess_settings(log.write(tmp_path / "raw"), tmp_path / "data", "split.validation=0")
    settings.vocabulary.min_count = 1
    fields = catalogue(settings.features, settings.vocabulary.min_count)
    parsed = parse.parse(line + b"\n", True, names_of(fields, "impression"))
    assert [fields.fields[number].name for number in parsed.field_V] == [
        "item_id",
        "item_category",
        "user_item_categories",
    ]
    assert parsed.id_V.tolist() == [ITEM, CATEGORY, CATEGORY]
    assert parsed.weight_V.tolist() == [1.0, 1.0, np.float32(0.69315)]
    assert parsed.line_table[0, line_columns.LABEL_FLAGS] == line_columns.CLICK_BIT

    # 3. The vocabulary gives its raw id a row: 0 is missing, 1 out of vocabulary, then by falling count (vocabulary.py).
    manifest = preprocess(settings)
    entry = next(field for field in manifest.fields if field.name == "item_id")
    table = pq.read_table(tmp_path / "data" / entry.vocabulary).to_pydict()
    assert table == {"raw_id": [ITEM, 1043], "index": [2, 3], "count": [2, 1]}
    assert entry.num_rows == 4
    item_row = 2

    # 4. It is written under its context: one Parquet row holds the user once and her impressions as lists (rows.py).
    rows = pq.read_table(tmp_path / "data" / manifest.files_of("train")[0].path).to_pylist()
    row = next(row for row in rows if row["impression_id"] == [SAMPLE])
    assert (row["context_id"], row["group_id"], row["click"], row["conversion"]) == (key_of(1), 11, [1], [0])
    assert row["item_id"] == [item_row]
    assert row["user_categories__weight"] == [np.float32(0.69315), np.float32(1.38629)]
    assert (row["user_item_categories__length"], row["user_item_shops__length"]) == ([1], [0])

    # 5. The plan says at which step it is read; the feed makes a batch of contexts and impressions (plan, feed, collate).
    run = tiny_settings(tmp_path / "data", tmp_path / "run", batch_size=8)
    run.plan.lanes = 1  # with more, the second context would be cut between two
    run.optimizer.embeddings = EmbeddingOptimizerSettings(name="sgd", lr=LEARNING_RATE)
    with join(run.world) as world:
        check_a_training_step(Trainer(run, world), item_row)


def check_a_training_step(trainer: Trainer, item_row: int) -> None:
    (batch,) = trainer.feed.batches(epoch=0)
    place = batch.impression_id.tolist().index(SAMPLE)
    context = int(batch.context_of_impression[place])
    assert (batch.num_contexts, batch.num_impressions) == (2, 3)
    assert batch.context_id[context] == key_of(1)
    assert batch.labels["click"][place] == 1
    names = [field.name for field in trainer.manifest.fields_of("impression")]
    assert bag(batch.impression, names.index("item_id"), place, batch.num_impressions) == ([item_row], [1.0])
    names = [field.name for field in trainer.manifest.fields_of("context")]
    rows, weights = bag(batch.context, names.index("user_categories"), context, batch.num_contexts)
    assert len(rows) == 2
    assert weights == pytest.approx([0.69315 / (0.69315 + 1.38629), 1.38629 / (0.69315 + 1.38629)])  # mean by weight

    # 6. The towers, the chain rule and the log loss (towers, graph, losses): its loss is -log(pCTR) - log(1 - pCTCVR).
    prediction = trainer.graph.predict(trainer.model.predict(batch))
    assert prediction["p_ctcvr"][place] == pytest.approx(float(prediction["p_ctr"][place] * prediction["p_cvr"][place]))
    before = mean_loss(trainer, batch)

    # 7. Backwards, the fused optimizer moves the row of its item by -rate x gradient, and rows not looked up not at all.
    item = next(shard.weight for shard in trainer.model.shards if shard.table == "item_id")
    start = item.clone()
    width = trainer.settings.embedding.dim
    slope = [finite_difference(trainer, batch, item, item_row, column) for column in range(width)]
    (loss,) = take_steps(trainer, 1)
    assert loss == pytest.approx(before, rel=1e-6)
    moved = ((item - start) / -LEARNING_RATE).numpy()
    assert np.abs(slope).max() > 1e-4
    np.testing.assert_allclose(moved[item_row, :width], slope, rtol=0.02, atol=2e-5)
    assert not moved[:2].any()
    assert moved[3].any()  # item 1043, of the other user's second impression
    assert mean_loss(trainer, batch) < before


def bag(bags: Bags, field: int, row: int, num_rows: int) -> tuple[list[int], list[float]]:
    """The table rows and weights of one bag."""
    ends = np.cumsum(bags.lengths.numpy())
    number = field * num_rows + row
    start = int(ends[number] - bags.lengths[number])
    return bags.values[start : ends[number]].tolist(), bags.weights[start : ends[number]].tolist()


def mean_loss(trainer: Trainer, batch: Batch) -> float:
    """In float64, from the predicted probabilities: ESMM eq. 3 written out."""
    prediction = trainer.graph.predict(trainer.model.predict(batch))
    total = 0.0
    for name, label in (("p_ctr", "click"), ("p_ctcvr", "conversion")):
        p, y = prediction[name].double().numpy(), batch.labels[label].numpy()
        total += float(-np.log(np.where(y > 0, p, 1.0 - p)).sum())
    return total / batch.num_impressions


def finite_difference(
    trainer: Trainer, batch: Batch, table: torch.Tensor, row: int, column: int, h: float = 0.02
) -> float:
    at = float(table[row, column])
    losses = []
    for value in (at + h, at - h):
        table[row, column] = value
        losses.append(mean_loss(trainer, batch))
    table[row, column] = at
    return (losses[0] - losses[1]) / (2 * h)
