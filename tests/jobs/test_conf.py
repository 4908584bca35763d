"""Every configuration of conf/ composes, to the settings that it had when each default stood in YAML, too."""

import json
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from jobs.command_line import settings_of
from jobs.compare import CompareSettings
from jobs.entry import compose
from jobs.evaluate import EvaluateSettings
from jobs.help_page import comments_of, with_comments
from jobs.inspect import InspectSettings
from jobs.track import TrackSettings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.config.score import ScoreSettings
from pipeline.simulate.run import SimulateSettings
from training.export.settings import ExportSettings
from training.gbdt.settings import GbdtSettings
from training.planning.settings import FeasibilitySettings
from training.reproduction.settings import ReproduceSettings
from training.run.chain import ChainSettings
from training.run.demo import DemoSettings
from training.run.settings import TrainSettings
from training.submission.settings import SubmitSettings

CONF = Path(__file__).parents[2] / "conf"
SCHEMAS = {
    "compare": CompareSettings,
    "demo": DemoSettings,
    "evaluate": EvaluateSettings,
    "export": ExportSettings,
    "gbdt": GbdtSettings,
    "inspect": InspectSettings,
    "simulate": SimulateSettings,
    "pipeline": ChainSettings,
    "preprocess": PreprocessSettings,
    "reproduce": ReproduceSettings,
    "score": ScoreSettings,
    "submit": SubmitSettings,
    "track": TrackSettings,
    "train": TrainSettings,
    "plan": FeasibilitySettings,
}
#: Command line → the settings that it composed to at commit 93bacc0, where conf/ repeated every default.
RECORDED = json.loads(Path(__file__).with_name("composed_settings.json").read_text(encoding="utf-8"))
#: Settings and choices that are newer than the record.
NEWER_SETTINGS = (
    "decoder",
    "boundaries",
    "body",
    "heads",
    "ranks",
    "width",
    "standardize",
    "max_line_bytes",
    "init_from_checkpoint",
    "mlflow",
    "processes",
    "mlflow_experiment",
    "day_by_day",
    "layout",
    "max_age_days",
    "sampling",
    "actions_end",
    "time_unit",
    "time_zone",
    "where",
    "ctr_run",
    "slices",
    "average",
    "calibrator",
    "own_tables",
    "table",
    "as_of",
    "asof",
    "header",
    "delimiter",
    "quote",
    "escape",
    "encoding",
    "clean",
    "click_time",
    "conversion",
    "conversion_time",
    "dactions",
    "daction_times",
    "missing_item",
    "label_without_positive",
    "join_without_match",
    "empty_split",
    "shared_context",
    "device",
    "share",
    "deterministic",
    "exchange",
    "plan",
    "towers",
)
NEWER_CHOICES = {
    "features=aliccp_bucketized": "preprocess",
    "model=aitm": "train",
    "model=aman": "train",
    "model=ctcvr": "train",
    "model=ctr": "train",
    "features=kuairand": "preprocess",
    "features=open_bandit": "preprocess",
    "labels=engagement": "preprocess",
    "features=simulated_shop": "preprocess",
    "layout=events": "simulate",
    "model=dcmt": "train",
    "model=division": "train",
    "model=dnn": "train",
    "model=dnn_ctr": "train",
    "model=dnn_os": "train",
    "model=dnn_os_ctr": "train",
    "model=escm2_dr": "train",
    "model=escm2_ips": "train",
    "model=esmm_deep": "train",
    "model=esmm_ns": "train",
    "model=mmoe": "train",
    "model=oversampling": "train",
    "model=ple": "train",
    "model=shared_bottom": "train",
    "model=unbias ctr_run=RUN": "train",
    "model=unbias_weighted ctr_run=RUN": "train",
    "source=kuairand": "preprocess",
    "source=open_bandit": "preprocess",
    "source=simulated_shop": "preprocess",
}
#: Newer groups' defaults, which the recorded commands choose without naming them.
NEWER_DEFAULTS = ("layout=aliccp",)


def without_newer(settings: Any) -> Any:
    if isinstance(settings, list):
        return [without_newer(entry) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: without_newer(value)
        for key, value in settings.items()
        if key not in NEWER_SETTINGS or is_older(key, settings)
    }


def is_older(key: str, settings: dict[str, Any]) -> bool:
    """Tell settings of source.events, jobs.demo, the rates, the world and the model from newer settings of the same names."""
    return (
        (key == "device" and "timeout_s" in settings)
        or (key == "towers" and "timeout_s" not in settings)
        or (key == "plan" and "row_wise_above_mb" not in settings)
        or (key in ("boundaries", "time_unit", "actions_end") and "windows_s" in settings)
        or (key == "ranks" and "batch_size" in settings)
        or (key == "conversion" and "cart_lift" in settings)
    )


def words_of(command: str) -> list[str]:
    job, *words = command.replace(
        "+spark.conf={spark.driver.memory: 4g}", "'+spark.conf={spark.driver.memory: 4g}'"
    ).split(" ", 1)
    return [job, *(shlex.split(words[0]) if words else [])]


@pytest.mark.parametrize("command", RECORDED)
def test_a_command_composes_to_the_settings_that_were_recorded(command: str) -> None:
    job, *overrides = words_of(command)
    found = without_newer(asdict(compose(job, SCHEMAS[job], overrides)))
    assert json.dumps(found) == json.dumps(RECORDED[command])  # the order of the keys included: config.yaml has it


def test_every_job_and_every_choice_of_every_group_is_recorded() -> None:
    words = {word for command in RECORDED for word in words_of(command)}
    words |= {*(choice.split()[0] for choice in NEWER_CHOICES), *NEWER_DEFAULTS}
    for path in CONF.glob("*/*.yaml"):
        assert f"{path.parent.name}={path.stem}" in words
    assert {path.stem for path in CONF.glob("*.yaml")} == {*SCHEMAS}


@pytest.mark.parametrize("choice", sorted(NEWER_CHOICES))
def test_a_newer_choice_composes_to_settings_other_than_the_defaults(choice: str) -> None:
    job = NEWER_CHOICES[choice]
    required = {
        "preprocess": ["out=OUT", "source.path=RAW"], "train": ["data=DATA", "out=OUT"], "simulate": ["out=OUT"],
    }[job]  # fmt: skip
    assert compose(job, SCHEMAS[job], [*required, *choice.split()]) != compose(job, SCHEMAS[job], required)


def test_help_has_the_comment_of_each_setting_behind_its_line() -> None:
    text = "out: ???\nembedding:\n  dim: 18\n  dims: {}\nlog:\n  dim: 3\n"
    assert with_comments(text, TrainSettings).splitlines() == [
        "out: ???  # the run: a folder or an address (s3://…); the same command resumes there",
        "embedding:",
        "  dim: 18  # columns of a table (ESMM §3.1)",
        "  dims: {}  # by field: embedding.dims.item_id=128",
        "log:",
        "  dim: 3",
    ]


@pytest.mark.parametrize("command", RECORDED)
def test_help_stays_the_same_yaml_and_has_every_comment_once(command: str) -> None:
    job, *overrides = words_of(command)
    plain = OmegaConf.to_yaml(OmegaConf.structured(compose(job, SCHEMAS[job], overrides)))
    shown = with_comments(plain, SCHEMAS[job])
    assert yaml.safe_load(shown) == yaml.safe_load(plain)
    tree = yaml.safe_load(plain)
    wanted = [comment for key, comment in comments_of(SCHEMAS[job]).items() if has(tree, key)]
    assert re.findall(r"  # (.+)$", shown, re.MULTILINE) == wanted


def has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


@dataclass
class Wide:
    text: str = "word " * 30  # behind its last line
    rows: list[dict[str, str]] = field(default_factory=list)  # not behind the keys of its entries
    names: dict[str, str] = field(default_factory=dict)  # of a field that takes several lines
    # fmt: off
    bracketed: str = (
        "y"  # inside the brackets
    )
    # fmt: on


def test_help_has_the_comments_of_wrapped_values_lists_of_mappings_and_fields_of_several_lines() -> None:
    wide = Wide(rows=[{"a": "1", "text": "2"}], names={"text": "3", "rows": "4"})
    plain = OmegaConf.to_yaml(OmegaConf.structured(wide))
    shown = with_comments(plain, Wide)
    assert yaml.safe_load(shown) == yaml.safe_load(plain)
    assert [line.split("  # ")[1] for line in shown.splitlines() if "  # " in line] == [
        "behind its last line",
        "not behind the keys of its entries",
        "of a field that takes several lines",
        "inside the brackets",
    ]
    assert shown.splitlines()[0] == plain.splitlines()[0]


def test_settings_are_walked_into_groups_that_may_be_left_out() -> None:
    keys = [setting.key for setting in settings_of(PreprocessSettings)]
    assert keys.index("source.events") + 1 == keys.index("source.events.impressions")
    assert "source.events.impressions.click" in keys
