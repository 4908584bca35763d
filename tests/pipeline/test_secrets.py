"""Which names say that a value is a secret, and that it is hidden in all that is saved or printed."""

import pytest

from pipeline.errors import InputError
from pipeline.plain_settings import build_settings
from pipeline.secrets import (
    has_credentials,
    is_secret_name,
    looked_up,
    redacted,
    refuse_secret_word,
    without_assignments,
    without_secrets,
)
from training.run.settings import TrainSettings

SECRET = "hunter2-hunter2"
NAMES = [
    "spark.hadoop.fs.s3a.secret.key",
    "spark.hadoop.fs.s3a.access.key",
    "spark.hadoop.fs.s3a.session.token",
    "spark.authenticate.secret",
    "spark.ssl.keyStorePassword",
    "spark.hadoop.fs.azure.account.key.x.blob.core.windows.net",
    "spark.hadoop.fs.azure.sas.container.x",
    "spark.executorEnv.AWS_SECRET_ACCESS_KEY",
    "spark.hadoop.google.cloud.auth.service.account.private.key",
    "API_KEY",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_under_the_name_of_a_secret_is_hidden_everywhere(name: str) -> None:
    assert is_secret_name(name)
    nested: object = SECRET
    for part in reversed(name.split(".")):
        nested = {part: nested}
    for tree in ({"conf": {name: SECRET}}, {"conf": nested}, {name: [SECRET]}, {name: {"x": SECRET}}):
        assert SECRET not in str(redacted(tree))
    for text in (f"{name}={SECRET}", f"{{{name}: {SECRET}}}", f"{name}: '{SECRET}'", f'{name}="{SECRET}"'):
        assert SECRET not in without_secrets(text, {})
        with pytest.raises(InputError) as refused:
            refuse_secret_word(f"+spark.conf={text}")
        assert SECRET not in str(refused.value)


def test_other_values_and_what_the_environment_holds_stay_as_they_are() -> None:
    conf = {"spark.driver.memory": "4g", "spark.hadoop.fs.s3a.secret.key": "${oc.env:KEY}", "spark.ui.enabled": False}
    assert redacted({"conf": conf, "out": "s3://bucket/x", "rows": 3}) == {
        "conf": conf,
        "out": "s3://bucket/x",
        "rows": 3,
    }
    for word in (
        "spark.conf.spark.driver.memory=4g",
        "embedding.dims.token=8",
        "+spark.conf={a.secret.key: '${oc.env:X}'}",
    ):
        refuse_secret_word(word)


def test_an_address_with_a_credential_is_refused_in_every_setting() -> None:
    for address in (f"s3://KEY:{SECRET}@bucket/data", f"hdfs://me:{SECRET}@host:8020/data"):
        assert SECRET not in without_secrets(f"{address} cannot be read", {})
        with pytest.raises(InputError, match="holds a credential") as refused:
            build_settings(TrainSettings, {"data": address, "out": "y"})
        assert SECRET not in str(refused.value)
        with pytest.raises(InputError) as refused:
            refuse_secret_word(f"data={address}")
        assert SECRET not in str(refused.value)


def test_what_the_environment_holds_under_the_name_of_a_secret_is_hidden_in_messages() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "HOME": "/home/someone", "TOKEN": "x"}
    assert (
        without_secrets(f"the store says {SECRET} in /home/someone x", environment)
        == "the store says *** in /home/someone x"
    )


def test_a_variable_is_looked_up_late_and_named_where_it_is_not_set() -> None:
    assert looked_up("spark.conf.x", "${oc.env:KEY}", {"KEY": SECRET}) == SECRET
    assert looked_up("spark.conf.x", "plain", {}) == "plain"
    with pytest.raises(InputError, match=r"spark\.conf\.x=\$\{oc\.env:KEY\}: the environment has no KEY"):
        looked_up("spark.conf.x", "${oc.env:KEY}", {})


@pytest.mark.parametrize("piece", ["x", "token", "s3://:", "a:"])
def test_a_text_of_a_million_letters_is_searched_in_one_pass(piece: str) -> None:
    """From every letter of a word anew it would take hours: a value of config.yaml can be so long."""
    text = piece * (1_000_000 // len(piece))
    assert not has_credentials(text)
    assert without_assignments(f"{text}\npassword={SECRET}").endswith("password=***")
