"""cluster=kubernetes: the stages as manifests, written into a folder in their order; the cluster itself is not asked.

Each stage is a Job of one pod, but a training of several nodes (an indexed Job, or a TrainJob of Kubeflow's Trainer) and
Spark with executors (`training.submission.spark_manifests`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pipeline.atomic_files import write_whole
from pipeline.errors import writing
from training.run.stages import Stage
from training.submission.plan import SPARK_JOBS, BatchJob
from training.submission.pods import (
    YamlObject,
    container_of,
    failure_policy,
    metadata_of,
    metadata_of_pod,
    pod_spec,
    volumes_of,
)
from training.submission.settings import NodeSize, SubmitSettings
from training.submission.slurm_scripts import size_of
from training.submission.spark_manifests import spark_application, spark_submit_files
from training.submission.yaml_text import yaml_of

_PORT = 29400
_FOLDERS_OF_SPARK = {"/tmp": "tmp", "/scratch": "scratch"}
_FOLDERS_OF_TRAINING = {"/tmp": "tmp", "/dev/shm": "shm"}
_TRAINER = "node"  # the name that Kubeflow's Trainer gives its container
_READY_AFTER = {"Job": "condition=Complete", "TrainJob": "condition=Complete", "SparkApplication": "jsonpath={.status.applicationState.state}=COMPLETED"}  # fmt: skip


def write_manifests(jobs: Sequence[BatchJob], settings: SubmitSettings) -> None:
    """Write a file for each stage and print the commands that apply them; with dry_run print the files alone."""
    files: dict[str, str] = {}
    commands: list[str] = []
    for number, job in enumerate(jobs, 1):
        made = files_of_stage(job, f"{number}-{job.name}", settings)
        files |= made
        commands += _commands_of(made, settings)
    folder = Path(settings.kubernetes.folder)
    if settings.dry_run:
        for name, text in files.items():
            print(f"# {folder / name}\n{text}", flush=True)
        return
    with writing(f"kubernetes.folder={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text)
    print(
        "\n".join(["The manifests are written. Apply a stage when the one before it is complete:", *commands]),
        flush=True,
    )


def files_of_stage(job: BatchJob, name: str, settings: SubmitSettings) -> dict[str, str]:
    """Return the files of a stage: their texts by their names, which begin with `name`."""
    documents: list[YamlObject] = []
    scripts: dict[str, str] = {}
    for seed in job.tasks or (0,):
        stage = job.of_seed(seed)
        called = f"{settings.name}-{stage.name}" + (f"-{seed}" if job.tasks else "")
        if stage.job in SPARK_JOBS and settings.kubernetes.spark_as == "spark_submit":
            scripts |= spark_submit_files(stage, called, f"{name}-{seed}" if job.tasks else name, settings)
            continue
        documents += _documents_of(stage, called, size_of(job, settings), settings)
    return scripts or {f"{name}.yaml": yaml_of(documents)}


def _documents_of(stage: Stage, name: str, size: NodeSize, settings: SubmitSettings) -> list[YamlObject]:
    kubernetes = settings.kubernetes
    if stage.job in SPARK_JOBS:
        image = kubernetes.spark_image if stage.job == "jobs.preprocess" else kubernetes.score_image
        if kubernetes.spark_as == "sparkapplication":
            return [spark_application(stage, name, image, settings)]
        command = ["python", "-m", stage.job, *stage.words]
        variables = {"SPARK_LOCAL_DIRS": "/scratch"}
        container = container_of("spark", image, command, size, _FOLDERS_OF_SPARK, variables, kubernetes)
        pod = pod_spec(container, volumes_of(list(_FOLDERS_OF_SPARK.values()), kubernetes), kubernetes)
        return [_job(name, pod, size, settings)]
    words = list(stage.words)
    if stage.job == "jobs.train":
        if kubernetes.train_as == "trainjob":
            return _train_job(stage, name, settings)
        if settings.sizes.train.nodes > 1:
            return _indexed_job(stage, name, settings)
        words.append(f"ranks={settings.sizes.train.ranks_of_node}")
    container = _trainer(["python", "-m", stage.job, *words], size, settings)
    return [_job(name, _training_pod(container, settings), size, settings)]


def _job(name: str, pod: YamlObject, size: NodeSize, settings: SubmitSettings, **more: Any) -> YamlObject:
    """Return a batch/v1 Job. Kueue holds it back by itself."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata_of(name, settings.kubernetes),
        "spec": {
            **more,
            "backoffLimit": settings.kubernetes.retries,
            "activeDeadlineSeconds": size.minutes * 60,
            "podFailurePolicy": failure_policy(pod["containers"][0]["name"]),
            "podReplacementPolicy": "Failed",  # a pod that still saves holds the run's lock
            "template": {"metadata": metadata_of_pod(name, settings.kubernetes), "spec": pod},
        },
    }


def _indexed_job(stage: Stage, name: str, settings: SubmitSettings) -> list[YamlObject]:
    """Return a Job with a pod a node, and the headless Service by which they find the first."""
    nodes = settings.sizes.train.nodes
    endpoint = f"--rdzv-endpoint={name}-0.{name}:{_PORT}"
    container = _trainer(
        _torchrun(stage, name, settings, ["--rdzv-backend=static", endpoint]), settings.sizes.train, settings
    )
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    container["env"].append({"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}})
    container["ports"] = [{"name": "rendezvous", "containerPort": _PORT}]
    pod = {"subdomain": name, **_training_pod(container, settings)}
    more = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {key: value for key, value in metadata_of(name, settings.kubernetes).items() if key != "labels"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # they have to find each other before they are ready
            "selector": {"job-name": name},
            "ports": [{"name": "rendezvous", "port": _PORT}],
        },
    }
    return [service, _job(name, pod, settings.sizes.train, settings, **more)]


def _train_job(stage: Stage, name: str, settings: SubmitSettings) -> list[YamlObject]:
    """Return a TrainJob of Kubeflow's Trainer, and the TrainingRuntime that it refers to, which has the pod.

    The Trainer tells torchrun by PET_* variables how many nodes there are, which one this is, and where the first is.
    """
    kubernetes, size = settings.kubernetes, settings.sizes.train
    container = _trainer(_torchrun(stage, name, settings, []), size, settings)
    pod = _training_pod(container, settings)
    job = {
        "backoffLimit": kubernetes.retries,
        "podFailurePolicy": failure_policy(_TRAINER),
        "podReplacementPolicy": "Failed",
        "template": {"metadata": metadata_of_pod(name, kubernetes), "spec": pod},
    }
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    replicated = {"name": _TRAINER, "template": {"metadata": {"labels": label}, "spec": job}}
    # A mistake of the user, status 2, fails its Job by podFailurePolicy, and then the whole set.
    rules = [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": name, "namespace": kubernetes.namespace},
        "spec": {
            "mlPolicy": {"numNodes": size.nodes, "torch": {}},
            **({"podGroupPolicy": {"volcano": {}}} if kubernetes.volcano else {}),
            "template": {
                "spec": {
                    "failurePolicy": {"maxRestarts": kubernetes.retries, "rules": rules},
                    "replicatedJobs": [replicated],
                }
            },
        },
    }
    train_job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata_of(name, kubernetes),
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
            "activeDeadlineSeconds": size.minutes * 60,
            "trainer": {
                "numNodes": size.nodes,
                "numProcPerNode": size.ranks_of_node,
                "image": container["image"],
                "args": container["args"],
                "resourcesPerNode": container["resources"],
            },
        },
    }
    return [runtime, train_job]


def _torchrun(stage: Stage, name: str, settings: SubmitSettings, rendezvous: Sequence[str]) -> list[str]:
    """Return torchrun's command of one node; without `rendezvous` it takes that from the environment."""
    size = settings.sizes.train
    counts = [f"--nnodes={size.nodes}", f"--nproc-per-node={size.ranks_of_node}"] if rendezvous else []
    launcher = ["python", "-m", "training.distributed.launch_ranks", *counts, *rendezvous, f"--rdzv-id={name}"]
    return [*launcher, "--max-restarts=0", "-m", stage.job, *stage.words]


def _trainer(command: Sequence[str], size: NodeSize, settings: SubmitSettings) -> YamlObject:
    threads = max(1, size.cpus // settings.sizes.train.ranks_of_node)
    variables = {"OMP_NUM_THREADS": str(threads)}
    image = settings.kubernetes.train_image
    return container_of(_TRAINER, image, command, size, _FOLDERS_OF_TRAINING, variables, settings.kubernetes)


def _training_pod(container: YamlObject, settings: SubmitSettings) -> YamlObject:
    kubernetes = settings.kubernetes
    return pod_spec(container, volumes_of(list(_FOLDERS_OF_TRAINING.values()), kubernetes), kubernetes)


def _commands_of(files: dict[str, str], settings: SubmitSettings) -> list[str]:
    """Return the commands that apply the files of a stage and wait for it."""
    commands = []
    for name, text in files.items():
        path = Path(settings.kubernetes.folder) / name
        if name.endswith(".sh"):
            commands.append(f"bash {path}")
        elif not name.endswith("-pod.yaml"):
            commands.append(f"kubectl apply -f {path}")
            for one in yaml.safe_load_all(text):
                if condition := _READY_AFTER.get(one["kind"]):
                    what = f"{one['kind'].lower()}/{one['metadata']['name']} -n {settings.kubernetes.namespace}"
                    commands.append(f"kubectl wait --for='{condition}' --timeout=-1s {what}")
    return commands
