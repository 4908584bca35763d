"""The files of --config-dir, as a source of Hydra's: plain values of the job's groups, and nothing that Hydra runs."""

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from jobs.listing import CONF
from pipeline.errors import InputError
from pipeline.plain_settings import read_yaml

_HYDRA = re.compile(r"(?<![\w-])hydra(?![\w-])")
_PACKAGE = re.compile(r"\A\s*#\s*@\s*package\s+([\w.]+)\s*\Z")


class OwnFiles(ConfigSource):
    """A folder with the layout of conf/."""

    @staticmethod
    def scheme() -> str:
        return "own"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file; InputError unless it is plain settings of this project."""
        path = self._file(config_path)
        try:
            values = read_yaml(path)
        except FileNotFoundError as error:  # removed since Hydra looked
            raise InputError(f"{path} does not exist; name another file of --config-dir.") from error
        values = {} if values is None else values
        package = package_of(path)
        _refuse_hydra(path, values, package)
        return ConfigResult(
            config=OmegaConf.create(values), path=self.full_path(), provider=self.provider, header={"package": package}
        )

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return is_ours(config_path) and (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return is_ours(config_path) and os.path.lexists(self._file(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Name the files of a group, for Hydra's message about one that is not there."""
        if results_filter == ObjectType.GROUP or not self.is_group(config_path):
            return []
        return sorted(path.stem for path in (Path(self.path) / config_path).glob("*.yaml"))

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / (config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")


def is_ours(config_path: str) -> bool:
    """Tell whether a path below --config-dir may be read: not what Hydra runs, and nothing outside the folder."""
    parts = config_path.split("/")
    return parts[0] != "hydra" and ".." not in parts


def package_of(path: Path) -> str | None:
    """Return what `# @package NAME` says in the comments that a file begins with; None without one."""
    with path.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if line.strip() and not line.lstrip().startswith("#"):
                break
            if found := _PACKAGE.match(line):
                return found.group(1)
            if re.match(r"\s*#\s*@", line):
                raise InputError(f"{path}: {line.strip()[:80]} is no header; write # @package NAME, or leave it out.")
    return None


def _refuse_hydra(path: Path, values: Any, package: str | None) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not a mapping of keys to values; write key: value.")
    defaults = values.get("defaults", [])
    if not isinstance(defaults, list):
        raise InputError(f"{path}: defaults={str(defaults)[:80]} is no list; write - GROUP: NAME, a line each.")
    if "hydra" in values or _HYDRA.search(package or "") or _HYDRA.search(str(defaults)):
        raise InputError(f"{path} sets what belongs to Hydra, which runs what stands there; leave hydra out.")
    if "$" in str(defaults) or ".." in str(defaults):
        raise InputError(
            f"{path}: defaults={defaults} leads out of the folders of settings; name files of groups there."
        )


def search_path_of(config_dir: Path) -> str:
    """Return the override that adds a folder to Hydra's search path, behind conf/.

    Raises InputError without such a folder, or where Hydra would read the file of conf/ in place of the folder's.
    """
    if not config_dir.is_dir():
        raise InputError(
            f"--config-dir={config_dir} is not a folder; give one with the layout of conf/ (docs/models.md)."
        )
    names = [path.relative_to(CONF).as_posix() for path in sorted(CONF.glob("**/*.yaml"))]
    for name in [*names, *_stored(ConfigStore.instance().repo)]:
        if (config_dir / name).exists():
            raise InputError(f"{config_dir / name} has the name of one of ours, which is read instead; rename it.")
    Plugins.instance().register(OwnFiles)
    address = QuotedString(text=f"{OwnFiles.scheme()}://{config_dir.absolute()}", quote=Quote.single).with_quotes()
    return f"hydra.searchpath=[{address}]"


def _stored(repo: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the configurations that the jobs and Hydra have stored, as files."""
    found = []
    for name, entry in repo.items():
        found += _stored(entry, f"{prefix}{name}/") if isinstance(entry, dict) else [f"{prefix}{name}"]
    return found
