"""The device of a rank: which GPU, with which builds, and how exact. Everything that can be wrong is one sentence."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import fbgemm_gpu
import torch
import torchrec

from pipeline.errors import InputError
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import Place

#: cuBLAS gives the same bits again only with a workspace of its own for each stream.
_CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
#: The releases of TorchRec and FBGEMM that belong to a release of torch: 2.13 → 1.8.
_FIRST_MINOR = 5


def choose_device(settings: WorldSettings, place: Place) -> torch.device:
    """Return the device of this rank, ready to compute on.

    Raises InputError for `world.device=cuda` without a GPU, for a host that has too few, and for builds
    that do not go together.
    """
    name = settings.device
    check_releases(torch.__version__, torchrec.__version__, _version_of_fbgemm())
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise InputError(f"world.device=cuda needs a GPU, and {_reason_without_gpu()}; use world.device=cpu.")
        return torch.device("cpu")
    if fbgemm_gpu.__variant__ == "cpu":
        raise InputError(
            "This host has a GPU, and the FBGEMM that is installed has kernels for a CPU alone (fbgemm-gpu-cpu); run make install "
            "GPU=1, or stay on the CPU with world.device=cpu (jobs.evaluate: device=cpu)."
        )
    device = torch.device("cuda", gpu_of(place, torch.cuda.device_count(), os.environ))
    torch.cuda.set_device(device)
    if settings.deterministic:
        make_deterministic()
    return device


def check_releases(of_torch: str, of_torchrec: str, of_fbgemm: str) -> None:
    """Raise InputError unless the three releases belong together: torch 2.13 with 1.8 of the others."""
    wanted = f"1.{int(of_torch.split('.')[1]) - _FIRST_MINOR}."
    for name, found in (("torchrec", of_torchrec), ("fbgemm-gpu", of_fbgemm)):
        if not found.startswith(wanted):
            raise InputError(
                f"torch {of_torch} and {name} {found} do not go together: it needs {name} {wanted}x; install what requirements.txt "
                "pins (make install, or make install GPU=1)."
            )


def gpu_of(place: Place, num_gpus: int, environment: Mapping[str, str]) -> int:
    """Return the number of this rank's GPU among those that it sees. Raises InputError where there are too few.

    Slurm and Kubernetes may show each rank one GPU alone: then it is number 0, whatever LOCAL_RANK is.
    """
    if place.local_rank < num_gpus:
        return place.local_rank
    if num_gpus == 1 and environment.get("CUDA_VISIBLE_DEVICES"):
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    raise InputError(
        f"This host has {num_gpus} GPU{'s' if num_gpus > 1 else ''}{shown}, and LOCAL_RANK={place.local_rank} needs one more: a rank "
        f"computes on a GPU of its own; start {num_gpus} rank{'s' if num_gpus > 1 else ''} on it, or set world.device=cpu."
    )


def check_own_gpus(place: Place, device: torch.device, store: Any) -> None:
    """Raise InputError, on every rank, where two ranks compute on one GPU: NCCL would fail, or hang."""
    if place.size == 1 or device.type != "cuda":
        return
    store.set(f"gpu/{place.rank}", str(torch.cuda.get_device_properties(device).uuid))
    rank_of: dict[str, int] = {}
    for rank in range(place.size):
        gpu = store.get(f"gpu/{rank}").decode()
        if gpu in rank_of:
            raise InputError(
                f"Ranks {rank_of[gpu]} and {rank} compute on one GPU ({gpu}); give each rank one of its own: start fewer ranks, or show "
                "each another one (CUDA_VISIBLE_DEVICES)."
            )
        rank_of[gpu] = rank


def make_deterministic() -> None:
    """Have a GPU give the same bits again. Call it before the first product: cuBLAS reads its setting once."""
    for name, value in _CUBLAS.items():
        os.environ.setdefault(name, value)
    # A kernel without such a form warns. Trap: by default torch also fills what it allocates, which costs a tenth of a step.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("once", message=".*does not have a deterministic implementation")


def set_precision(precision: str, device: torch.device) -> None:
    """Choose how a GPU multiplies fp32: tf32 rounds each factor to 10 bits of mantissa. A CPU always takes fp32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def to_predict(settings: WorldSettings, device: str | None = None) -> WorldSettings:
    """Return the settings of a process that predicts with a run trained under `settings`, on `device` if one is given.

    The run's own device need not be there: trained on a GPU, it predicts on a CPU where there is none.
    """
    if device is None:
        device = "auto" if settings.device == "cuda" else settings.device
    return replace(settings, device=device)


def _version_of_fbgemm() -> str:
    for name in ("fbgemm-gpu", "fbgemm-gpu-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(fbgemm_gpu.__version__)


def _reason_without_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for CPUs (make install GPU=1 installs the other one)"
    return "torch finds none on this host"
