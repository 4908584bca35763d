"""TorchRec's own distribution trains the same model as ours, on gloo ranks, and resumes what ours has saved."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import FIELDS, write_tiny_dataset
from tiny_run import take_steps, tiny_settings, weights

from pipeline.errors import InputError
from training.checkpoint.files import checkpoint_paths
from training.distributed.planner import kinds_in, plan_by_torchrec
from training.distributed.settings import ShardingSettings
from training.distributed.torchrec_exchange import TorchRecExchange
from training.distributed.world import join
from training.feed.plan import PlanSettings
from training.model.entire_space import EntireSpaceModel
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

#: Kinds of placement by name; in `mixed` every scope has several, and the tables other widths.
SHARDINGS = {
    "table_wise": ShardingSettings("table_wise"),
    "row_wise": ShardingSettings("row_wise"),
    "data_parallel": ShardingSettings("data_parallel"),
    "mixed": ShardingSettings(
        tables={"item_intention": "data_parallel", "user_brands": "row_wise", "item_id": "row_wise"}
    ),
    "planned": ShardingSettings(plan="torchrec"),
}


def settings_of(folder: Path, name: str, exchange: str) -> TrainSettings:
    settings = tiny_settings(folder / "data", folder / f"{name}-{exchange}", dropout=0.3)
    settings.plan = PlanSettings(batch_size=60, lanes=6)
    base = SHARDINGS[name]
    settings.sharding = ShardingSettings(base.default, dict(base.tables), exchange=exchange, plan=base.plan)
    settings.embedding.dims = {"item_id": 8, "user_brands": 5} if name == "mixed" else {}
    return settings


def trained(folder: Path, names: list[str]) -> Arrays:
    """<sharding>/<exchange>/…: the losses of some steps, and this rank's weights after them."""
    found: Arrays = {}
    for name in names:
        for exchange in ("peer", "torchrec"):
            settings = settings_of(folder, name, exchange)
            with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
                assert isinstance(trainer.model.exchange, TorchRecExchange) == (exchange == "torchrec")
                found[f"{name}/{exchange}/losses"] = np.array(take_steps(trainer, 4))
                found |= {f"{name}/{exchange}/{key}": value for key, value in weights(trainer).items()}
    return found


@pytest.mark.parametrize(("world_size", "names"), [(2, [*SHARDINGS]), (3, ["table_wise", "data_parallel", "mixed"])])
def test_it_trains_the_same_bits_as_ours_where_they_are_defined(
    tmp_path: Path, world_size: int, names: list[str]
) -> None:
    """A table cut by rows is summed over the ranks in the order that a reduce-scatter chooses: on three, other bits."""
    write_tiny_dataset(tmp_path / "data", num_contexts=120)
    seen = set()
    for found in run_ranks(trained, world_size, tmp_path / "ranks", tmp_path, names):
        for key, value in found.items():
            name, exchange, rest = key.split("/", 2)
            if exchange == "peer":
                seen.add(rest)
                other = found[f"{name}/torchrec/{rest}"]
                if world_size == 3 and name == "mixed":
                    np.testing.assert_allclose(other, value, rtol=1e-3, atol=1e-5, err_msg=key)
                else:
                    np.testing.assert_array_equal(other, value, err_msg=key)
    assert {f"tables/{name}" for name in FIELDS} <= seen


def epochs_trained(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    return {}


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_run_may_change_its_exchange_when_it_resumes(tmp_path: Path) -> None:
    """The last checkpoint has the same bytes as that of a run that had one exchange all along."""
    write_tiny_dataset(tmp_path / "data", num_contexts=80)
    whole, changed = settings_of(tmp_path, "table_wise", "peer"), settings_of(tmp_path, "table_wise", "torchrec")
    whole.epochs = 2
    run_ranks(epochs_trained, 2, tmp_path / "ranks", whole)
    run_ranks(epochs_trained, 2, tmp_path / "ranks", changed)
    changed.epochs, changed.sharding.exchange = 2, "peer"
    run_ranks(epochs_trained, 2, tmp_path / "ranks", changed)
    one, other = (checkpoint_paths(Path(settings.out))[0] for settings in (whole, changed))
    assert one.name == other.name
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert len(files) >= 3
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_auto_is_torchrec_on_several_gpus_alone() -> None:
    kinds = [ShardingSettings().exchange_of(device, ranks) for device in ("cpu", "cuda") for ranks in (1, 2)]
    assert kinds == ["peer", "peer", "peer", "torchrec"]
    assert ShardingSettings(exchange="torchrec").exchange_of("cpu", 1) == "torchrec"


def test_the_planner_places_every_table_and_those_that_are_named_as_they_are_named(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=40)
    settings = settings_of(tmp_path, "planned", "peer")
    settings.sharding.tables = {"item_id": "table_wise"}
    with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
        model = trainer.model.network
        fields = trainer.manifest.fields_of()
        plain = EntireSpaceModel(trainer.manifest, trainer.graph, settings.embedding, settings.model, 1)
        found = kinds_in(plan_by_torchrec(plain, fields, settings.sharding, "rowwise_adagrad", 60, world))
        assert found["item_id"] == "table_wise"
        assert found.keys() == {*model.context.names, *model.impression.names}
        settings.sharding.tables = {"item_id": "row_wise"}
        with pytest.raises(
            InputError,
            match=r"planner takes table_wise and data_parallel, .*item_id=row_wise; use sharding\.plan=settings",
        ):
            plan_by_torchrec(plain, fields, settings.sharding, "rowwise_adagrad", 60, world)
