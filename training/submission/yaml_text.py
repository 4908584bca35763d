"""YAML that kubectl and people read: no aliases, and quotes around whatever a reader might take for something other than text."""

import re
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from training.submission.pods import YamlObject


def yaml_of(documents: Sequence[YamlObject]) -> str:
    """Return documents of YAML; every text that a reader of YAML 1.1 or 1.2 might take for something else is in quotes."""
    return str(yaml.dump_all(documents, Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True, width=10_000))


class _QuotingDumper(yaml.SafeDumper):
    """Writes a text plain only where it is a word of letters."""

    def ignore_aliases(self, data: Any) -> bool:  # kubectl reads aliases; people do not
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9./_-]{2,}", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_word else '"')


_QuotingDumper.add_representer(str, _represent_text)
