"""The network of a run as a graph that needs none of this code: torch.export, AOTInductor, ONNX.

A graph takes one dictionary: the encoded columns of training.serving, of contexts and impressions together, and
`context_of_impression`. Whole numbers are int64. Every size is dynamic, 0 and 1 included.
"""

import contextlib
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from training.export.settings import AOTI, ONNX, PT2
from training.model.towers import Tower
from training.serving.context_rows import Encoded
from training.serving.network import ServedNetwork

INDEX_INPUT = "context_of_impression"
FILE_OF = {PT2: "model.pt2", AOTI: "model.aoti.pt2", ONNX: "model.onnx"}


class TracedNetwork(nn.Module):
    """The network with one dictionary as its input."""

    def __init__(self, network: ServedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return output → [B]."""
        by_scope = {
            scope: {name: columns[name] for name in encoded_names(self.network, scope)} for scope in self.network.fields
        }
        found: dict[str, Tensor] = self.network(by_scope["context"], by_scope["impression"], columns[INDEX_INPUT])
        return found


def encoded_names(network: ServedNetwork, scope: str) -> list[str]:
    """Return the names of the encoded columns of a scope."""
    names = []
    for entry in network.fields[scope]:
        names.append(entry.name)
        if entry.arity == "many":
            names.append(f"{entry.name}__length")
        if entry.weighted:
            names.append(f"{entry.name}__weight")
    return names


def inputs_of(network: ServedNetwork) -> list[str]:
    """Return the names of a graph's inputs, in their order."""
    return [*encoded_names(network, "context"), *encoded_names(network, "impression"), INDEX_INPUT]


def graph_inputs(network: ServedNetwork, encoded: Encoded) -> dict[str, Tensor]:
    """Return the dictionary that a graph takes."""
    columns: Mapping[str, np.ndarray] = (
        encoded.contexts | encoded.impressions | {INDEX_INPUT: encoded.context_of_impression}
    )
    found = {}
    for name in inputs_of(network):
        column = columns[name]
        found[name] = torch.from_numpy(column.astype(np.float32 if column.dtype.kind == "f" else np.int64))
    return found


def trace(
    network: ServedNetwork, example: Encoded, is_portable: bool = False, for_compiler: bool = False
) -> ExportedProgram:
    """Trace `network` on the CPU. `example` should have several contexts, impressions and values of each field.

    `is_portable` takes operators that ONNX has, `for_compiler` those of this CPU, which no file can hold.
    """
    import torch.fx.experimental._config as symbolic_shapes

    traced = copy(network)
    traced.is_portable = is_portable
    inputs = graph_inputs(network, example)
    shapes = {name: {0: Dim.DYNAMIC} for name in inputs}
    # By default torch.export takes a size of 0 or 1 for another graph; a request has one context, and bags may be empty.
    with (
        symbolic_shapes.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        torch.no_grad(),
        quiet(),
        cpu_towers_exported(network, for_compiler),
    ):
        return torch.export.export(TracedNetwork(traced).eval(), (inputs,), dynamic_shapes=(shapes,), strict=False)


def save_graphs(
    network: ServedNetwork, example: Encoded, folder: Path, formats: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the graph to `folder` in `formats`. Return format → file, and format → why it is left out."""
    files: dict[str, str] = {}
    left_out = {name: why for name in formats if (why := missing_tool(name))}
    if PT2 in formats:
        torch.export.save(trace(network, example), folder / FILE_OF[PT2])
        files[PT2] = FILE_OF[PT2]
    if AOTI in formats and AOTI not in left_out:
        with quiet():
            program = trace(network, example, for_compiler=True)
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / FILE_OF[AOTI]))
        files[AOTI] = FILE_OF[AOTI]
    if ONNX in formats and ONNX not in left_out:
        with quiet():
            save_onnx(trace(network, example, is_portable=True), network, folder / FILE_OF[ONNX])
        files[ONNX] = FILE_OF[ONNX]
    return files, left_out


def save_onnx(program: ExportedProgram, network: ServedNetwork, path: Path) -> None:
    """Write the graph as ONNX; its inputs and outputs have our names."""
    found = torch.onnx.export(
        program,
        args=(),
        dynamo=True,
        verbose=False,
        input_names=inputs_of(network),
        output_names=list(network.graph.outputs),
    )
    assert found is not None
    found.save(path)


def missing_tool(name: str) -> str:
    """Say what `name` needs and this machine lacks; "" if nothing."""
    if name == AOTI and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler is on the PATH"
    packages = [
        one for one in ("onnx", "onnxscript", "onnxruntime") if name == ONNX and not importlib.util.find_spec(one)
    ]
    return f"{', '.join(packages)} is not installed" if packages else ""


@contextlib.contextmanager
def cpu_towers_exported(network: ServedNetwork, is_wanted: bool) -> Iterator[None]:
    """Let graphs that are traced in the block have the towers as this CPU computes them, if `is_wanted`."""
    towers = [module for module in network.towers.modules() if isinstance(module, Tower)]
    for tower in towers:
        tower.exports_cpu_tower = is_wanted
    try:
        yield
    finally:
        for tower in towers:
            tower.exports_cpu_tower = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the exporters print for their own authors."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
