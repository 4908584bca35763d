"""Spark with executors on Kubernetes: a SparkApplication of the Spark operator, or a script that calls spark-submit."""

import shlex
from collections.abc import Mapping
from importlib import metadata

from training.run.stages import Stage
from training.submission.pods import (
    GRACE_S,
    YamlObject,
    container_security,
    environment_of,
    metadata_of,
    metadata_of_pod,
    mounts_of,
    pod_security,
    volumes_of,
)
from training.submission.settings import SubmitSettings
from training.submission.yaml_text import yaml_of

#: Where pip installs our code in the images (docker/).
_CODE = "local:///opt/entirespace/lib/python3.11/site-packages"
_SPARK_FOLDERS = {"/tmp": "tmp", "/opt/spark/work-dir": "work-dir"}
#: What conf/spark/cluster.yaml says as well; behind spark-submit its settings come first.
_SPARK_PROPERTIES = {"spark.task.maxFailures": "4", "spark.speculation": "true"}
_DRIVER_RETRIES = 3  # by the operator, which does not look at the exit status


def spark_application(stage: Stage, name: str, image: str, settings: SubmitSettings) -> YamlObject:
    """Return a SparkApplication of sparkoperator.k8s.io/v1beta2."""
    kubernetes = settings.kubernetes
    pod: YamlObject = {
        **_memory(settings),
        "cores": settings.sizes.spark.cpus,
        "serviceAccount": kubernetes.service_account,
        **metadata_of_pod(name, kubernetes),
        "env": environment_of({}),
        **({"envFrom": [{"secretRef": {"name": kubernetes.secret}}]} if kubernetes.secret else {}),
        "podSecurityContext": pod_security(kubernetes),
        "securityContext": container_security(),
        "volumeMounts": mounts_of(_SPARK_FOLDERS, kubernetes),
        "terminationGracePeriodSeconds": GRACE_S,
    }
    return {
        "apiVersion": "sparkoperator.k8s.io/v1beta2",
        "kind": "SparkApplication",
        "metadata": metadata_of(name, kubernetes),
        "spec": {
            "type": "Python",
            "pythonVersion": "3",
            "mode": "cluster",
            "sparkVersion": metadata.version("pyspark"),
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "mainApplicationFile": _file_of(stage),
            "arguments": _words_of(stage),
            "sparkConf": dict(_SPARK_PROPERTIES),
            "restartPolicy": {
                "type": "OnFailure",
                "onFailureRetries": min(_DRIVER_RETRIES, kubernetes.retries),
                "onFailureRetryInterval": 30,
            },
            **(
                {"batchScheduler": "volcano", "batchSchedulerOptions": {"queue": kubernetes.volcano}}
                if kubernetes.volcano
                else {}
            ),
            "volumes": volumes_of(list(_SPARK_FOLDERS.values()), kubernetes),
            "driver": pod,
            "executor": {"instances": kubernetes.executors, **pod},
        },
    }


def spark_submit_files(stage: Stage, name: str, prefix: str, settings: SubmitSettings) -> dict[str, str]:
    """Return a script that calls spark-submit --master k8s://…, and the template of its pods."""
    kubernetes = settings.kubernetes
    image = kubernetes.spark_image if stage.job == "jobs.preprocess" else kubernetes.score_image
    container = "spark"
    template = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": metadata_of(name, kubernetes)["labels"], **_annotations(name, settings)},
        "spec": {
            **({"schedulerName": "volcano"} if kubernetes.volcano else {}),
            "terminationGracePeriodSeconds": GRACE_S,
            "securityContext": pod_security(kubernetes),
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "env": environment_of({}),
                    **({"envFrom": [{"secretRef": {"name": kubernetes.secret}}]} if kubernetes.secret else {}),
                    "securityContext": container_security(),
                    "volumeMounts": mounts_of(_SPARK_FOLDERS, kubernetes),
                }
            ],
            "volumes": volumes_of(list(_SPARK_FOLDERS.values()), kubernetes),
        },
    }
    pod_file = f"{prefix}-pod.yaml"
    memory, cores = _memory(settings), str(settings.sizes.spark.cpus)
    conf = {
        **_SPARK_PROPERTIES,
        "spark.kubernetes.namespace": kubernetes.namespace,
        "spark.kubernetes.container.image": image,
        "spark.kubernetes.authenticate.driver.serviceAccountName": kubernetes.service_account,
        "spark.executor.instances": str(kubernetes.executors),
        "spark.executor.cores": cores,
        "spark.executor.memory": memory["memory"],
        "spark.executor.memoryOverhead": memory["memoryOverhead"],
        "spark.driver.cores": cores,
        "spark.driver.memory": memory["memory"],
        "spark.driver.memoryOverhead": memory["memoryOverhead"],
        "spark.kubernetes.driver.podTemplateFile": pod_file,
        "spark.kubernetes.executor.podTemplateFile": pod_file,
        "spark.kubernetes.driver.podTemplateContainerName": container,
        "spark.kubernetes.executor.podTemplateContainerName": container,
    }
    words = ["spark-submit", "--master", f"k8s://{kubernetes.master}", "--deploy-mode", "cluster", "--name", name]
    return {pod_file: yaml_of([template]), f"{prefix}.sh": _script(words, conf, stage)}


def _script(words: list[str], conf: Mapping[str, str], stage: Stage) -> str:
    lines = [shlex.join(words), *(f"  --conf {shlex.quote(f'{name}={value}')}" for name, value in conf.items())]
    lines.append(f"  {shlex.join([_file_of(stage), *_words_of(stage)])}")
    command = " \\\n".join(lines)
    return f'#!/usr/bin/env bash\n# Spark starts the driver in the cluster, from the template beside this file.\nset -euo pipefail\ncd "$(dirname "$0")"\n{command}\n'


def _file_of(stage: Stage) -> str:
    return f"{_CODE}/{stage.job.replace('.', '/')}.py"


def _annotations(name: str, settings: SubmitSettings) -> YamlObject:
    found = metadata_of_pod(name, settings.kubernetes).get("annotations")
    return {"annotations": found} if found else {}


def _words_of(stage: Stage) -> list[str]:
    """Return the words of the job without its master: spark-submit has one."""
    return [word for word in stage.words if not word.startswith("spark.master=")]


def _memory(settings: SubmitSettings) -> dict[str, str]:
    """Divide a pod's memory: the work is done in Python, beside the JVM."""
    gb = settings.sizes.spark.memory_gb
    java = max(1, gb // 3)
    return {"memory": f"{java}g", "memoryOverhead": f"{max(1, gb - java)}g"}
