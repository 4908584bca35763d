"""What every entry point shares: compose the configuration, type it at the door, and say mistakes in one sentence."""

import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import InputError

#: Exit status of a run that stopped at a mistake of the user or of the input.
EXIT_INPUT = 2
#: torchrun ends all ranks when the first is gone, and the one that speaks has to be heard before.
_AFTER_THE_SPEAKER_S = 3.0

try:
    import pipeline.kernels.cache  # noqa: F401  (it refuses an unsafe directory; jobs import this module first)
except InputError as refused:
    print(f"error: {refused}", file=sys.stderr, flush=True)
    sys.exit(EXIT_INPUT)

Settings = TypeVar("Settings")


def launch(name: str, schema: type[Settings], run: Callable[[Settings], None], speaks: bool = True) -> None:
    """Compose conf/<name>.yaml with the command line, check it against the dataclass `schema`, and call `run`.

    A mistake ends the process with status 2 and one sentence on stderr (on the ranks with `speaks`); any other
    exception keeps its traceback, for that is our mistake.
    """
    sys.argv[1:] = with_new_keys(sys.argv[1:], schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own lines and hides the exception from us

    def main(config: DictConfig) -> None:
        try:
            run(typed(schema, config))
        except InputError as error:
            _stop(str(error), speaks)

    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(main)()
    except HydraException as error:
        _stop(_sentence(error, schema), speaks)


def with_new_keys(overrides: Sequence[str], schema: type[Any]) -> list[str]:
    """`overrides` with `++` before those of settings by name, such as embedding.dims.item_id=128 or
    features.fields.item_id.max_ids=1000: Hydra adds a key that no YAML file has only when it is told so."""
    by_name = tuple(_keys_by_name(OmegaConf.structured(schema), ""))
    return [f"++{text}" if text.startswith(by_name) else text for text in overrides]


def _keys_by_name(node: Any, prefix: str) -> list[str]:
    """`embedding.dims.`, …: the settings that are dictionaries with values of one type."""
    found: list[str] = []
    for key in node:
        child = node._get_node(key)
        if not OmegaConf.is_dict(child) or child._is_missing():
            continue
        if child._is_none():  # a group that may be left out, such as source.events
            child = OmegaConf.structured(child._metadata.ref_type)
        if child._metadata.object_type is not dict:
            found += _keys_by_name(child, f"{prefix}{key}.")
        elif child._metadata.element_type is not Any:
            found.append(f"{prefix}{key}.")
    return found


def typed(schema: type[Settings], config: DictConfig) -> Settings:
    """`config` as an instance of the dataclass `schema`; InputError for an unknown key, a wrong type, a missing value."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            key = missing[0]
            raise InputError(f"{key} is not set and has no default; give it on the command line as {key}=VALUE.")
        return cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(_sentence(error, schema)) from error


def _sentence(error: Exception, schema: type[Any]) -> str:
    """Hydra's and OmegaConf's messages, cut to one sentence, with the nearest known setting for an unknown one."""
    text = str(error.__cause__ or error) if isinstance(error, HydraException) else str(error)
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else unknown.group(1)
        near = difflib.get_close_matches(key, _known_keys(schema), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists every setting."
        return f"{key} is not a setting of this job; {hint}"
    first = re.sub(r"\s+", " ", re.split(r"\n    full_key|\nConfig search path", text)[0]).strip()
    full = re.search(r"full_key: (\S+)", text)
    return f"{full.group(1)}: {first}" if full else first


def _known_keys(schema: type[Any]) -> list[str]:
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key in node:
            path = f"{prefix}{key}"
            keys.append(path)
            child = node._get_node(key)
            if OmegaConf.is_dict(child) and not child._is_missing() and not child._is_none():
                walk(child, f"{path}.")

    walk(OmegaConf.structured(schema), "")
    return keys


def _stop(sentence: str, speaks: bool) -> None:
    if speaks:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    else:
        time.sleep(_AFTER_THE_SPEAKER_S)
    sys.exit(EXIT_INPUT)
