"""What every pod of ours has: a user that is not root, a root file system that is read alone, requests, volumes, a retry policy."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import InputError
from training.submission.settings import KubernetesSettings, NodeSize

#: A pod that is asked to end has so long to save a checkpoint.
GRACE_S = 300
_GPU = "nvidia.com/gpu"
YamlObject = dict[str, Any]


def metadata_of(name: str, kubernetes: KubernetesSettings) -> YamlObject:
    """Return the metadata of what Kueue may hold back: a Job, a TrainJob, a SparkApplication."""
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "entirespace"}
    if kubernetes.kueue:
        labels["kueue.x-k8s.io/queue-name"] = kubernetes.kueue
    return {"name": name, "namespace": kubernetes.namespace, "labels": labels}


def metadata_of_pod(name: str, kubernetes: KubernetesSettings) -> YamlObject:
    """Return the metadata of a pod: Volcano looks for its queue there."""
    found: YamlObject = {"labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "entirespace"}}
    if kubernetes.volcano:
        found["annotations"] = {"scheduling.volcano.sh/queue-name": kubernetes.volcano}
    return found


def pod_spec(container: YamlObject, volumes: Sequence[YamlObject], kubernetes: KubernetesSettings) -> YamlObject:
    """Return the spec of a pod of one container."""
    return {
        **({"schedulerName": "volcano"} if kubernetes.volcano else {}),
        "restartPolicy": "Never",  # a new pod in its place, as podFailurePolicy decides
        "serviceAccountName": kubernetes.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": pod_security(kubernetes),
        "containers": [container],
        "volumes": list(volumes),
    }


def pod_security(kubernetes: KubernetesSettings) -> YamlObject:
    """Return the security context of a pod: one user for all stages, since a run's settings are read by their owner alone."""
    user = kubernetes.user
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> YamlObject:
    """Return the security context of a container: what Kubernetes calls the restricted profile, and a root file system that is read alone."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def container_of(
    name: str,
    image: str,
    command: Sequence[str],
    size: NodeSize,
    folders: Mapping[str, str],
    variables: Mapping[str, str],
    kubernetes: KubernetesSettings,
) -> YamlObject:
    """Return a container; `folders` has the names of its own volumes by their paths."""
    return {
        "name": name,
        "image": image,
        "args": [_literal(word) for word in command],  # behind the entrypoint of the image, which is tini
        "env": environment_of(variables),
        **({"envFrom": [{"secretRef": {"name": kubernetes.secret}}]} if kubernetes.secret else {}),
        "resources": resources_of(size),
        "securityContext": container_security(),
        "volumeMounts": mounts_of(folders, kubernetes),
    }


def environment_of(variables: Mapping[str, str]) -> list[YamlObject]:
    """Return the variables of a container; what would go to the home directory goes to /tmp, which can be written."""
    return [{"name": name, "value": value} for name, value in {"HOME": "/tmp", **variables}.items()]


def resources_of(size: NodeSize) -> YamlObject:
    """Return requests, and limits where Kubernetes needs them: a limit of CPUs would only slow it down."""
    gpus = {_GPU: str(size.gpus)} if size.gpus else {}
    memory = f"{size.memory_gb}Gi"
    return {"requests": {"cpu": str(size.cpus), "memory": memory, **gpus}, "limits": {"memory": memory, **gpus}}


def mounts_of(folders: Mapping[str, str], kubernetes: KubernetesSettings) -> list[YamlObject]:
    """Return the mounts of a container: its own folders, and the claim."""
    found = [{"name": name, "mountPath": path} for path, name in folders.items()]
    return found + ([{"name": "shared", "mountPath": kubernetes.mount}] if kubernetes.claim else [])


def volumes_of(names: Sequence[str], kubernetes: KubernetesSettings) -> list[YamlObject]:
    """Return the volumes of a pod: an empty folder for each name, `shm` of them in memory, and the claim."""
    memory = {"medium": "Memory", "sizeLimit": f"{kubernetes.shared_memory_gb}Gi"}
    found: list[YamlObject] = [{"name": name, "emptyDir": memory if name == "shm" else {}} for name in names]
    if kubernetes.claim:
        found.append({"name": "shared", "persistentVolumeClaim": {"claimName": kubernetes.claim}})
    return found


def failure_policy(container: str) -> YamlObject:
    """Return the podFailurePolicy: a mistake ends the job, a node that was taken away costs no retry, all else costs one."""
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": [2]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "Count",
                "onExitCodes": {"containerName": container, "operator": "In", "values": [os.EX_TEMPFAIL]},
            },
        ]
    }


def _literal(word: str) -> str:
    """Keep Kubernetes from putting a variable in the place of $(NAME)."""
    if "\n" in word:
        raise InputError(f"{word!r} has a line feed; leave it out.")
    return word.replace("$(", "$$(")
