"""Every manifest of jobs.submit cluster=kubernetes, validated strictly against the schemas of Kubernetes, of Kubeflow's Trainer and of the Spark operator.

The schemas come from packages: kubernetes-validate (Kubernetes' own, strict: no key that it does not know), and the models
that Kubeflow generates from its CRDs.
"""

import copy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_spark_api.models.spark_v1beta2_spark_application import SparkV1beta2SparkApplication
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import TrainerV1alpha1TrainingRuntime

from jobs.entry import compose
from jobs.submit import run as submit
from pipeline.errors import InputError
from training.submission.manifests import files_of_stage
from training.submission.plan import plan_jobs
from training.submission.settings import SubmitSettings
from training.submission.yaml_text import yaml_of

KUBERNETES = "1.37"
MODELS = {
    "TrainJob": TrainerV1alpha1TrainJob,
    "TrainingRuntime": TrainerV1alpha1TrainingRuntime,
    "SparkApplication": SparkV1beta2SparkApplication,
}
#: Kubeflow's models have a class of their own around these two values.
WRAPPED = {
    "IoK8sApimachineryPkgApiResourceQuantity": {"type": ["string", "number"]},
    "IoK8sApimachineryPkgUtilIntstrIntOrString": {"type": ["string", "integer"]},
}
BASE = ("cluster=kubernetes", "raw=/shared/raw", "out=/shared/out", "score=/shared/today")
VARIANTS = {
    "plain": [],
    "two nodes": ["sizes.train.nodes=2", "sizes.train.gpus=8", "sizes.train.cpus=32"],
    "operators": ["sizes.train.nodes=2", "kubernetes.train_as=trainjob", "kubernetes.spark_as=sparkapplication"],
    "kueue": ["kubernetes.kueue=ads", "kubernetes.train_as=trainjob", "kubernetes.spark_as=sparkapplication"],
    "volcano": ["kubernetes.volcano=ads", "kubernetes.train_as=trainjob", "kubernetes.spark_as=sparkapplication"],
    "volcano, jobs": ["kubernetes.volcano=ads", "sizes.train.nodes=3"],
    "spark-submit": ["kubernetes.spark_as=spark_submit", "kubernetes.volcano=ads"],
    "secret, no claim": ["kubernetes.secret=s3-keys", "kubernetes.claim=null", "kubernetes.train_as=trainjob"],
    "seeds": ["seeds=3", "sizes.train.nodes=2"],
}


def settings_of(*words: str) -> SubmitSettings:
    return compose("submit", SubmitSettings, [*BASE, *words])


def files_made(*words: str) -> dict[str, str]:
    settings = settings_of(*words)
    found: dict[str, str] = {}
    for number, job in enumerate(plan_jobs(settings), 1):
        found |= files_of_stage(job, f"{number}-{job.name}", settings)
    return found


def documents_of(*words: str) -> list[dict[str, Any]]:
    return [one for name, text in files_made(*words).items() if name.endswith(".yaml") for one in yaml.safe_load_all(text)]  # fmt: skip


def of_kind(kind: str, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in documents if one["kind"] == kind]


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """The spec of the pod of a Job or a TrainingRuntime."""
    spec = document["spec"]
    if document["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec["template"]["spec"]


def strict(schema: Any) -> Any:
    """Close every object of a JSON schema to keys that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: WRAPPED.get(key) or strict(value) for key, value in schema.items()}
    if "properties" in closed and isinstance(closed["properties"], dict):
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def closed_schema(kind: str) -> Any:
    return strict(MODELS[kind].model_json_schema())


def validate(document: dict[str, Any]) -> None:
    if document["kind"] not in MODELS:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    else:
        jsonschema.Draft202012Validator(closed_schema(document["kind"])).validate(document)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_is_valid_with_no_key_that_the_schema_does_not_know(variant: str) -> None:
    documents = documents_of(*VARIANTS[variant])
    assert documents
    for document in documents:
        validate(document)


@pytest.mark.parametrize("kind", ["Job", "Service", "TrainJob", "TrainingRuntime", "SparkApplication"])
def test_the_validation_finds_a_key_that_is_not_there_and_a_value_of_another_type(kind: str) -> None:
    document = of_kind(kind, documents_of(*VARIANTS["two nodes"]) + documents_of(*VARIANTS["operators"]))[0]
    validate(document)
    with_key = copy.deepcopy(document)
    with_key["spec"]["comletions"] = 2
    wrong = copy.deepcopy(document)
    wrong["spec"] = "text"
    for damaged in (with_key, wrong):
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            validate(damaged)


@pytest.mark.parametrize("text", ["yes", "on", "null", "1e3", "0o7", "010", "12:30:00", "2017-05-06", "1_000", "~", "=", "", "a: b", "#x", "é", "'", '"', "\\n", "${x}", "!tag", "&a", "*a", "true"])  # fmt: skip
def test_every_text_stays_a_text_in_yaml(text: str) -> None:
    written = yaml_of([{"args": [text], "key": text}])
    assert yaml.safe_load(written) == {"args": [text], "key": text}
    assert all(line.rstrip().endswith(('"', "'")) for line in written.splitlines() if text and text in line)


def test_the_written_files_hold_what_was_made_and_the_commands_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(settings_of(f"kubernetes.folder={tmp_path}", "sizes.train.nodes=2"))
    files = files_made("sizes.train.nodes=2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == [
        f"kubectl apply -f {tmp_path}/1-preprocess.yaml",
        "kubectl wait --for='condition=Complete' --timeout=-1s job/entirespace-preprocess -n default",
    ]
    assert sum(line.startswith("kubectl wait") for line in said) == 4
    submit(settings_of(f"kubernetes.folder={tmp_path / 'none'}", "dry_run=true"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_pod_is_root_writes_to_its_root_file_system_or_may_become_more(variant: str) -> None:
    documents = documents_of(*VARIANTS[variant])
    for document in [*of_kind("Job", documents), *of_kind("TrainingRuntime", documents)]:
        pod = pod_of(document)
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        check_container(pod["containers"][0], pod["volumes"])
    for document in of_kind("SparkApplication", documents):
        for role in ("driver", "executor"):
            assert document["spec"][role]["podSecurityContext"]["runAsNonRoot"] is True
            check_container(document["spec"][role], document["spec"]["volumes"])
    for document in of_kind("Pod", documents):
        check_container(document["spec"]["containers"][0], document["spec"]["volumes"])


def check_container(container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    kinds = {volume["name"]: set(volume) - {"name"} for volume in volumes}
    assert kinds[mounted["/tmp"]] == {"emptyDir"}
    assert set(mounted.values()) == set(kinds)


def test_a_training_of_two_nodes_finds_its_first_pod_by_name() -> None:
    service, job = documents_of("sizes.train.nodes=2", "sizes.train.gpus=8")[1:3]
    assert (service["kind"], service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("Service", "None", True)  # fmt: skip
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    pod = pod_of(job)
    name = job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"] == name
    arguments = pod["containers"][0]["args"]
    assert f"--rdzv-endpoint={name}-0.{name}:{service['spec']['ports'][0]['port']}" in arguments
    assert arguments[arguments.index("-m", 2) :] == ["-m", "jobs.train", "data=/shared/out/dataset", "out=/shared/out/run"]  # fmt: skip
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}


def test_status_75_is_tried_again_2_is_not_and_a_lost_node_costs_no_retry() -> None:
    documents = documents_of(*VARIANTS["two nodes"]) + documents_of(*VARIANTS["operators"])
    jobs = [one["spec"] for one in of_kind("Job", documents)]
    jobs += [one["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"] for one in of_kind("TrainingRuntime", documents)]  # fmt: skip
    assert len(jobs) > 4
    for job in jobs:
        assert job["backoffLimit"] == 20
        assert job["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused
        fails, ignores, counts = job["podFailurePolicy"]["rules"]
        assert (fails["action"], fails["onExitCodes"]["values"]) == ("FailJob", [2])
        assert (ignores["action"], ignores["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert (counts["action"], counts["onExitCodes"]["values"]) == ("Count", [75])
        containers = {container["name"] for container in job["template"]["spec"]["containers"]}
        assert {rule["onExitCodes"]["containerName"] for rule in (fails, counts)} == containers


def test_kueue_and_volcano_are_told_by_labels_and_by_the_scheduler() -> None:
    for document in documents_of(*VARIANTS["kueue"]):
        if document["kind"] not in ("TrainingRuntime", "Service"):
            assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ads"
    for document in of_kind("Job", documents_of(*VARIANTS["volcano, jobs"])):
        assert pod_of(document)["schedulerName"] == "volcano"
        annotations = document["spec"]["template"]["metadata"]["annotations"]
        assert annotations == {"scheduling.volcano.sh/queue-name": "ads"}
    documents = documents_of(*VARIANTS["volcano"])
    assert of_kind("SparkApplication", documents)[0]["spec"]["batchSchedulerOptions"] == {"queue": "ads"}
    assert of_kind("TrainingRuntime", documents)[0]["spec"]["podGroupPolicy"] == {"volcano": {}}
    with pytest.raises(InputError, match="choose one"):
        settings_of("kubernetes.kueue=a", "kubernetes.volcano=b")


def test_the_script_of_spark_submit_passes_every_word_as_it_is(tmp_path: Path) -> None:
    files = files_made("kubernetes.spark_as=spark_submit", "preprocess_args=labels.daction=[cart,'a b'] out_of=$(x)")
    (tmp_path / "spark-submit").write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
    (tmp_path / "spark-submit").chmod(0o755)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["bash", str(tmp_path / "1-preprocess.sh")], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    words = done.stdout.rstrip("\0").split("\0")
    assert words[:4] == ["--master", "k8s://https://kubernetes.default.svc", "--deploy-mode", "cluster"]
    at = next(number for number, word in enumerate(words) if word.startswith("local://"))
    assert words[at].endswith("/site-packages/jobs/preprocess.py")
    assert words[at + 1 :] == ["source.path=/shared/raw", "out=/shared/out/dataset", *shlex.split("labels.daction=[cart,'a b'] 'out_of=$(x)'")]  # fmt: skip
    conf = dict(word.split("=", 1) for word, before in zip(words[1:], words, strict=False) if before == "--conf")
    assert conf["spark.kubernetes.driver.podTemplateFile"] == "1-preprocess-pod.yaml"
    assert (tmp_path / conf["spark.kubernetes.executor.podTemplateFile"]).exists()


def test_every_seed_has_a_script_of_spark_submit() -> None:
    files = files_made("kubernetes.spark_as=spark_submit", "seeds=3", "score=/shared/today")
    scripts = {name: text for name, text in files.items() if name.endswith(".sh") and "score" in name}
    assert sorted(scripts) == [f"4-score-{seed}.sh" for seed in (1, 2, 3)]
    for seed in (1, 2, 3):
        assert f"run=/shared/out/seed-{seed}/run" in scripts[f"4-score-{seed}.sh"]
        assert f"4-score-{seed}-pod.yaml" in files


def test_kubernetes_puts_no_variable_into_a_word() -> None:
    document = documents_of("train_args=log.mlflow_experiment=$(HOME)")[1]
    assert pod_of(document)["containers"][0]["args"][-2] == "log.mlflow_experiment=$$(HOME)"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("name=Ads_CTR", "name=Ads_CTR"),
        ("name=a b", "name=a b"),
        (f"name={'a' * 41}", "40 at most"),
        ("out=relative", "out=relative is relative"),
        ("kubernetes.namespace='a\nb'", "namespace"),
        ("kubernetes.spark_image='a b'", "spark_image"),
        ("kubernetes.mount=shared", "mount"),
        ("kubernetes.master=host", "master"),
        ("kubernetes.train_as=pytorchjob", "train_as"),
        ("kubernetes.user=0", "user"),
    ],
)
def test_what_kubernetes_cannot_take_is_refused(word: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        settings_of(word)
    assert says in str(refused.value)


def test_a_help_page_has_every_setting() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.submit", "--help"], capture_output=True, text=True, check=True)
    for key in ("kueue", "volcano", "max_requeues", "container", "shared_memory_gb"):
        assert f"{key}:" in done.stdout
