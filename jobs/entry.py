"""Entry of every job: compose the configuration, check it against the job's dataclasses, report a mistake in one line.

Each default and its comment stand once, in the dataclass. Hydra knows the defaults as `<job>_settings`, which each job's
defaults list begins with; the files of conf/ hold only differences from them. Hydra composes the settings, and runs
nothing: its compose API instantiates no callback, launcher or sweeper, and its own settings are dropped unread.
"""

import atexit
import contextlib
import dataclasses
import difflib
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from jobs.command_line import parse_words, ready_for_hydra, refuse_other_forms, settings_of
from jobs.listing import groups_of, job_named
from jobs.output import EXIT_INPUT, check_output
from jobs.own_files import search_path_of
from pipeline import telemetry
from pipeline.errors import InputError, TryAgainError, printable
from pipeline.plain_settings import build_settings
from pipeline.secrets import redacted, refuse_secret_word, without_secrets
from pipeline.terminal import styled

#: Exit status where another host or the network failed, so that the same command may do: EX_TEMPFAIL.
EXIT_TRY_AGAIN = os.EX_TEMPFAIL

# Waiting threads of OpenMP sleep. By default they spin, which costs several times the CPU where others use the cores too.
# Read when torch is loaded, which jobs do after this module, and by the processes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import pipeline.kernels.cache  # noqa: F401  (it refuses an unsafe directory; jobs import this module first)
except InputError as refused:
    print(f"error: {printable(str(refused))}", file=sys.stderr, flush=True)
    sys.exit(EXIT_INPUT)

Settings = TypeVar("Settings")


def launch(
    name: str,
    schema: type[Settings],
    run: Callable[[Settings], None],
    speaks: bool = True,
    *,
    rank: int = 0,
    note_error: Callable[[str], float] | None = None,
) -> None:
    """Compose conf/<name>.yaml with the command line, check it against the dataclass `schema`, and call `run`.

    A mistake of the user ends the process with status 2 and one line on stderr, on the ranks with `speaks`; a lost rank
    with 75. Any other exception is a bug, and keeps its traceback. `--help` prints what jobs.listing says of the job, and
    every setting. `note_error`, of a job with ranks, is given the line too on every `rank`, and returns how many seconds this
    one has to wait before it ends.
    """
    check_output()
    try:
        telemetry.begin(name, rank)
        refuse_other_forms(sys.argv[1:], schema)
        words = parse_words(sys.argv[1:])
        for word in words.overrides:
            refuse_secret_word(word)
        config = _composed(name, schema, words.overrides, words.config_dir)
        if words.wants_help:
            from jobs.help_page import help_page  # it reads the sources of the dataclasses

            if speaks:
                shown = config | {"spark": redacted(config["spark"])} if "spark" in config else config
                print(help_page(job_named(name), shown, words.overrides, words.config_dir), flush=True)
            return
        settings = to_settings(schema, config)
        telemetry.is_about(str(getattr(settings, "out", None) or getattr(settings, "run", "")))
        with telemetry.reported_end():
            run(settings)
        sys.stdout.flush()
    except InputError as error:
        status = EXIT_TRY_AGAIN if isinstance(error, TryAgainError) else EXIT_INPUT
        _stop(without_secrets(str(error)), speaks, status, note_error)


@contextlib.contextmanager
def imports_not_collected() -> Iterator[None]:
    """Disable garbage collection while the block imports, and exclude the imported objects from later collections.

    Importing torch and TorchRec makes 700,000 objects and hardly any garbage. Scanning them took 2.2 of the 5.4 s of a
    run of six steps.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def exit_without_finalization() -> Iterator[None]:
    """End the process behind the block with its exit status: run the exit handlers, but do not finalize the interpreter.

    A thread of gloo that drops the last reference to a tensor needs Python's lock. Once the interpreter is being
    finalized, asking for it ends the thread, and C++ then aborts the process: 3 of 120 ranks that ended right behind a
    collective did so.
    """
    status = 0
    try:
        yield
    except SystemExit as ended:  # any other exception is a bug, and ends the process as usual
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # as Python does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def compose(name: str, schema: type[Settings], overrides: Sequence[str], config_dir: Path | None = None) -> Settings:
    """Compose conf/<name>.yaml with `overrides` as `launch` does, to call a job from Python."""
    return to_settings(schema, _composed(name, schema, overrides, config_dir))


def _composed(name: str, schema: type[Any], overrides: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    """Return the composed settings as plain values."""
    _register(name, schema)
    named_as_groups = _settings_named_as_groups(name, schema)
    own = {
        key: value
        for key, equals, value in (word.partition("=") for word in overrides)
        if equals and key in named_as_groups
    }
    words = ready_for_hydra([word for word in overrides if word.partition("=")[0] not in own], schema)
    if config_dir is not None:
        words.append(search_path_of(config_dir))
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            config = hydra.compose(name, words)
    except HydraException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(_message_of(error, schema)) from error
    except RecursionError as error:  # Hydra follows defaults lists without an end
        raise InputError(
            f"The files of --config-dir={config_dir} name each other in a circle in their defaults; take one of the names out."
        ) from error
    return cast(dict[str, Any], OmegaConf.to_container(config)) | own


def _settings_named_as_groups(name: str, schema: type[Any]) -> set[str]:
    """Return the texts among a job's settings that are called as a folder of conf/ that the job takes no file from.

    Hydra would look in its defaults list for the `model` of jobs.demo, because there is a folder conf/model.
    """
    # Not pathlib: the code may be a zip that spark-submit ships.
    folders = {path.name for path in resources.files("conf").iterdir() if path.is_dir()} - groups_of(name).keys()
    return {setting.key for setting in settings_of(schema) if setting.type is str and setting.key in folders}


def _register(name: str, schema: type[Any]) -> None:
    """Store the defaults of `schema` in Hydra as `<name>_settings`, for the defaults list of conf/<name>.yaml.

    An optional group, such as source.events, is stored by itself: as `events_defaults` of the group source, for the
    configurations that choose it.
    """
    store = ConfigStore.instance()
    store.store(f"{name}_settings", _plain(schema))
    for setting in settings_of(schema):
        parent, _, leaf = setting.key.rpartition(".")
        if setting.is_optional and dataclasses.is_dataclass(setting.type):
            store.store(
                f"{leaf}_defaults", {leaf: _plain(cast(type[Any], setting.type))}, group=parent.replace(".", "/")
            )


def _plain(schema: type[Any]) -> Any:
    """Return the defaults of `schema` as plain values.

    A dictionary typed by a dataclass would refuse a new entry such as +features.fields.price={…}. `to_settings` checks
    the types.
    """
    return OmegaConf.to_container(OmegaConf.structured(schema), structured_config_mode=SCMode.DICT)


def to_settings(schema: type[Settings], config: dict[str, Any]) -> Settings:
    """Convert `config` to an instance of `schema`; InputError for an unknown key, a wrong type or a missing value."""
    try:
        return build_settings(schema, config)
    except OmegaConfBaseException as error:
        raise InputError(_message_of(error, schema)) from error


def _message_of(error: Exception, schema: type[Any]) -> str:
    """Cut an error of Hydra or OmegaConf to one line; for an unknown setting, name the nearest known ones."""
    text = str(error.__cause__ or error) if isinstance(error, HydraException) else str(error)
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else unknown.group(1)
        if group := _optional_group(key, schema):
            return f"{key} is a setting of {group}, which this command does not choose; give {'='.join(group.rsplit('.', 1))} too."
        near = difflib.get_close_matches(key, [setting.key for setting in settings_of(schema)], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists every setting."
        return f"{key} is not a setting of this job; {hint}"
    first = re.sub(r"\s+", " ", re.split(r"\n    full_key|\nConfig search path", text)[0]).strip()
    full = re.search(r"full_key: (\S+)", text)
    return f"{full.group(1)}: {first}" if full else first


def _optional_group(key: str, schema: type[Any]) -> str:
    """Return the optional group that `key` is a setting of; "" for none."""
    settings = {setting.key: setting for setting in settings_of(schema)}
    groups = (key[:end] for end, letter in enumerate(key) if letter == ".")
    return next((group for group in groups if key in settings and settings[group].is_optional), "")


def _stop(message: str, speaks: bool, status: int, note_error: Callable[[str], float] | None = None) -> None:
    line = f"error: {printable(message)}"
    if speaks:
        print(f"{styled('error:', 'red', sys.stderr)} {printable(message)}", file=sys.stderr, flush=True)
    if note_error:
        time.sleep(note_error(line))
    sys.exit(status)
