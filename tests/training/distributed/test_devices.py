"""Which GPU a rank takes, and every reason that it has none, in one sentence. No GPU is needed: torch's answers are faked."""

import os
from pathlib import Path
from types import SimpleNamespace

import fbgemm_gpu
import pytest
import torch
import torch.distributed as dist
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings

from jobs import evaluate
from pipeline.errors import InputError
from training.distributed import devices
from training.distributed.devices import (
    check_own_gpus,
    check_releases,
    choose_device,
    gpu_of,
    set_precision,
    to_predict,
)
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import Place
from training.distributed.world import join
from training.export.check import scores_of_the_feed
from training.run.run_folder import load_settings, write_config
from training.run.trainer import Trainer
from training.serving.open_run import open_scorer

GPU = torch.device("cuda", 0)


def place(rank: int = 0, size: int = 1, local_rank: int | None = None) -> Place:
    return Place(rank, size, rank if local_rank is None else local_rank, size, "start")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A host with a GPU, as torch and FBGEMM would tell of it; the devices that were set."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(fbgemm_gpu, "__variant__", "cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return taken


def test_a_rank_takes_the_gpu_of_its_number_or_the_one_that_it_is_shown() -> None:
    assert [gpu_of(place(rank, 4), 4, {}) for rank in range(4)] == [0, 1, 2, 3]
    assert gpu_of(place(3, 4), 1, {"CUDA_VISIBLE_DEVICES": "3"}) == 0
    assert gpu_of(place(3, 4), 4, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == 3


@pytest.mark.parametrize(("num_gpus", "visible"), [(1, None), (2, None), (2, "0,1")])
def test_more_ranks_than_gpus_are_refused_with_both_numbers(num_gpus: int, visible: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(
        InputError, match=rf"This host has {num_gpus} GPU.*LOCAL_RANK={num_gpus} needs.*start {num_gpus} rank"
    ):
        gpu_of(place(num_gpus, num_gpus + 1), num_gpus, environment)


def test_two_ranks_on_one_gpu_are_told_before_nccl_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """LOCAL_RANK beside CUDA_VISIBLE_DEVICES=0 on every rank."""
    store = dist.HashStore()
    store.set("gpu/0", "GPU-a")
    store.set("gpu/1", "GPU-b")
    for uuid, shared in (("GPU-c", False), ("GPU-b", True)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, uuid=uuid: SimpleNamespace(uuid=uuid))
        if shared:
            with pytest.raises(InputError, match=r"Ranks 1 and 2 compute on one GPU \(GPU-b\)"):
                check_own_gpus(place(2, 3), GPU, store)
        else:
            check_own_gpus(place(2, 3), GPU, store)
    check_own_gpus(place(2, 3), torch.device("cpu"), dist.HashStore())  # nobody is asked


def test_a_gpu_is_taken_and_made_deterministic_unless_the_settings_say_no(
    one_gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        assert choose_device(WorldSettings(deterministic=False), place()) == GPU
        assert not torch.are_deterministic_algorithms_enabled()
        assert choose_device(WorldSettings(), place()) == GPU
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert one_gpu == [GPU, GPU]
    assert choose_device(WorldSettings("cpu"), place()) == torch.device("cpu")


def test_fbgemm_for_a_cpu_beside_a_gpu_is_refused(one_gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbgemm_gpu, "__variant__", "cpu")
    with pytest.raises(InputError, match=r"fbgemm-gpu-cpu.*make install GPU=1.*world\.device=cpu.*device=cpu"):
        choose_device(WorldSettings(), place())
    assert not one_gpu


def test_a_missing_gpu_is_told_with_the_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in (
        (None, r"is a build for CPUs \(make install GPU=1"),
        ("13.0", "torch finds none on this host"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(
            InputError, match=rf"world\.device=cuda needs a GPU, and .*{reason}.*; use world\.device=cpu"
        ):
            choose_device(WorldSettings("cuda"), place())
        assert choose_device(WorldSettings("auto"), place()) == torch.device("cpu")


def test_releases_that_do_not_go_together_are_named() -> None:
    check_releases("2.13.0+cu130", "1.8.0", "1.8.0")
    check_releases("2.11.0", "1.6.1", "1.6.0")
    with pytest.raises(
        InputError, match=r"torch 2\.13\.0\+cpu and fbgemm-gpu 1\.6\.0 do not go together: it needs fbgemm-gpu 1\.8\.x"
    ):
        check_releases("2.13.0+cpu", "1.8.0", "1.6.0")
    with pytest.raises(InputError, match=r"torchrec 1\.7\.0"):
        check_releases("2.13.0", "1.7.0", "1.8.0")
    assert devices._version_of_fbgemm().startswith("1.8.")


def test_tf32_is_a_gpus_precision_alone() -> None:
    try:
        for device, precision, found in (
            (GPU, "tf32", "high"),
            (GPU, "fp32", "highest"),
            (torch.device("cpu"), "tf32", "highest"),
        ):
            set_precision(precision, device)
            assert torch.get_float32_matmul_precision() == found
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_a_run_predicts_on() -> None:
    assert to_predict(WorldSettings("cuda")).device == "auto"
    assert to_predict(WorldSettings("cpu")).device == "cpu"
    assert to_predict(WorldSettings("cpu"), "cuda").device == "cuda"


def test_a_run_of_a_gpu_is_evaluated_scored_exported_and_resumed_without_one(tmp_path: Path) -> None:
    """Its settings name a device, a precision and an optimizer that a CPU does not have."""
    write_tiny_dataset(tmp_path / "data", num_contexts=120)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run")
    with join(settings.world) as world:
        assert Trainer(settings, world).fit() == 0
    on_gpu = load_settings(tmp_path / "run")
    on_gpu.world.device, on_gpu.precision, on_gpu.optimizer.embeddings.name = "cuda", "tf32", "adam"
    write_config(tmp_path / "run", on_gpu)

    evaluate.run(evaluate.EvaluateSettings(run=str(tmp_path / "run")))
    assert (tmp_path / "run" / "metrics.json").exists()
    with pytest.raises(InputError, match=r"world\.device=cuda needs a GPU"):
        evaluate.run(evaluate.EvaluateSettings(run=str(tmp_path / "run"), device="cuda"))
    scorer = open_scorer(tmp_path / "run")
    ids, scores = scores_of_the_feed(on_gpu, scorer, str(tmp_path / "data"), "test", 50)
    assert len(ids) == len(scores["p_ctr"]) == 50

    on_gpu.optimizer.embeddings.name = (
        "rowwise_adagrad"  # adam's tables cannot learn on a CPU, which is refused by name
    )
    on_gpu.epochs = 2
    write_config(tmp_path / "run", on_gpu)
    on_gpu.world.device = "cpu"
    with join(on_gpu.world) as world:
        trainer = Trainer(on_gpu, world)
        assert trainer.position.epoch == 1
        assert len(take_steps(trainer, 2)) == 2
        trainer.close()
