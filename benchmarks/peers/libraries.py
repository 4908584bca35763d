"""Train one epoch of a peer's ESMM and predict the test split: run by `python -m benchmarks.peers`, in the peers' environment.

    python -m benchmarks.peers.libraries LIBRARY DATASET PAD BATCH_SIZE OUT.npz

Each library is used as its own examples do: arrays in memory, its own data loader, its own trainer, Adam for all
parameters. Its default penalties on weights, which cost time and which we do not have, are off.
"""

import json
import resource
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

from benchmarks.peers import inputs
from benchmarks.peers.inputs import Inputs
from pipeline.dataset.manifest import ManifestField, load_manifest

HIDDEN, DIM = (200, 80), 18
#: Of 3e-3, 1e-2 and 2e-2 the best of both libraries by CTCVR AUC on validation impressions (18 fields, 30 steps).
LEARNING_RATE = 1e-2
SEED = 1

Predictions = dict[str, np.ndarray]


def torch_rechub(
    fields: list[ManifestField], width: dict[str, int], train: Inputs, test: Inputs, batch_size: int
) -> tuple[float, Predictions]:
    """Train one epoch; return its CPU seconds and the predictions.

    Its ESMM has batch normalization behind every hidden layer, and no switch for it.
    """
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import ESMM
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    features = {
        entry.name: SequenceFeature(entry.name, entry.num_rows, embed_dim=DIM, pooling="mean", padding_idx=0)
        if width.get(entry.name, 1) > 1
        else SparseFeature(entry.name, entry.num_rows, embed_dim=DIM)
        for entry in fields
    }
    user = [features[entry.name] for entry in fields if entry.scope == "context"]
    item = [features[entry.name] for entry in fields if entry.scope == "impression"]
    tower = {"dims": list(HIDDEN)}
    trainer = MTLTrainer(
        ESMM(user, item, cvr_params=tower, ctr_params=tower),
        task_types=["classification"] * 3,
        optimizer_fn=torch.optim.Adam,
        optimizer_params={"lr": LEARNING_RATE},
    )

    def labels(split: Inputs) -> np.ndarray:  # conversion given a click, click, both: the order its ESMM wants
        return np.stack([split.conversion_B, split.click_B, split.conversion_B], axis=1)

    generator = DataGenerator(train.features, labels(train))
    loader, _, test_loader = generator.generate_dataloader(
        x_val=test.features, y_val=labels(test), x_test=test.features, y_test=labels(test), batch_size=batch_size
    )
    start_s = time.process_time()
    trainer.train_one_epoch(loader)
    cpu_s = time.process_time() - start_s
    test_loader = ((features, None)[0] for features, _ in test_loader)
    p_cvr, p_ctr, p_ctcvr = np.array(trainer.predict(trainer.model, test_loader)).T
    return cpu_s, {"p_ctr": p_ctr, "p_cvr": p_cvr, "p_ctcvr": p_ctcvr}


def deepctr_torch(
    fields: list[ManifestField], width: dict[str, int], train: Inputs, test: Inputs, batch_size: int
) -> tuple[float, Predictions]:
    """Train one epoch; return its CPU seconds and the predictions."""
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models.multitask import ESMM

    columns = [
        VarLenSparseFeat(SparseFeat(entry.name, entry.num_rows, DIM), maxlen=width[entry.name], combiner="mean")
        if width.get(entry.name, 1) > 1
        else SparseFeat(entry.name, entry.num_rows, DIM)
        for entry in fields
    ]
    model = ESMM(columns, tower_dnn_hidden_units=HIDDEN, l2_reg_embedding=0, l2_reg_linear=0, init_std=0.01, seed=SEED)
    model.compile(torch.optim.Adam(model.parameters(), LEARNING_RATE), loss="binary_crossentropy")
    labels = np.stack([train.click_B, train.conversion_B], axis=1)
    start_s = time.process_time()
    model.fit(dict(train.features), labels, batch_size=batch_size, epochs=1, verbose=0)
    cpu_s = time.process_time() - start_s
    p_ctr, p_ctcvr = model.predict(dict(test.features), batch_size).T
    return cpu_s, {"p_ctr": p_ctr, "p_cvr": p_ctcvr / p_ctr, "p_ctcvr": p_ctcvr}


LIBRARIES = {"torch-rechub": torch_rechub, "deepctr-torch": deepctr_torch}


def main() -> None:
    library, dataset, pad, batch_size, out = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    width = inputs.widths(dataset, int(pad))
    train, test = inputs.read(dataset, "train", width), inputs.read(dataset, "test", width)
    fields = list(load_manifest(dataset).fields)
    cpu_s, predictions = LIBRARIES[library](fields, width, train, test, int(batch_size))
    np.savez(out, impression_id=test.impression_id_B, click=test.click_B, conversion=test.conversion_B, **predictions)
    report = {
        "cpu_us": 1e6 * cpu_s / len(train.click_B),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "version": f"{library} {version(library)}, torch {torch.__version__}",
    }
    print(json.dumps(report))  # the last line of stdout is for the parent


if __name__ == "__main__":
    main()
