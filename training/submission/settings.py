"""The settings of jobs.submit: what is submitted, how large each job is, and what the cluster needs to know; loads no torch."""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.errors import InputError
from pipeline.locations import is_address
from pipeline.plain_settings import words_of_setting
from pipeline.secrets import is_secret_name
from training.run.chain import ChainSettings

CLUSTERS = ("slurm", "kubernetes")
_LARGEST_ARRAY = 1000
_MOST_HOURS = 24.0 * 366
_LARGEST = {"cpus": 4096, "memory_gb": 100_000, "gpus": 64, "nodes": 10_000, "ranks": 4096}
#: What `module load` takes: names and versions, and nothing that a shell acts on.
_MODULE = re.compile(r"[\w.+=@/:-]+")
#: A name that Kubernetes takes for whatever is made from it: a DNS label, with room for "-preprocess" and a pod's number.
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MOST_LETTERS_OF_A_NAME = 40
_IMAGE = re.compile(r"[\w.:/@#+-]+")


def _check_line(key: str, text: str) -> None:
    """Raise InputError where `text` is no single printable line: a line feed would begin a command of its own."""
    if not text.isprintable():
        raise InputError(f"{key}={text!r} has a line feed or another character that is not printable; leave it out.")


@dataclass
class NodeSize:
    """What one node of a job is given."""

    cpus: int = 8
    memory_gb: int = 32
    gpus: int = 0
    hours: float = 24.0  # after which the cluster ends it

    def __post_init__(self) -> None:
        for name, least in {"cpus": 1, "memory_gb": 1, "gpus": 0}.items():
            if not least <= getattr(self, name) <= _LARGEST[name]:
                raise InputError(f"{name}={getattr(self, name)} is not from {least} to {_LARGEST[name]}.")
        if not 0.0 < self.hours <= _MOST_HOURS:
            raise InputError(f"hours={self.hours} is not above 0 and at most {_MOST_HOURS:.0f}.")

    @property
    def minutes(self) -> int:
        return math.ceil(self.hours * 60)


@dataclass
class TrainingSize(NodeSize):
    """What the training is given, by node."""

    nodes: int = 1
    ranks: int = 0  # processes of a node; 0: one for each of its GPUs, or one without GPUs

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"nodes": 1, "ranks": 0}.items():
            if not least <= getattr(self, name) <= _LARGEST[name]:
                raise InputError(f"{name}={getattr(self, name)} is not from {least} to {_LARGEST[name]}.")

    @property
    def ranks_of_node(self) -> int:
        return self.ranks or self.gpus or 1


@dataclass
class JobSizes:
    """The group `sizes`."""

    spark: NodeSize = field(default_factory=lambda: NodeSize(cpus=16, hours=12.0))  # preprocess and score
    train: TrainingSize = field(default_factory=TrainingSize)
    evaluate: NodeSize = field(default_factory=lambda: NodeSize(hours=4.0))
    table: NodeSize = field(default_factory=NodeSize)  # one of table_jobs


@dataclass
class EnvironmentSettings:
    """The group `environment`: Python and our code on a Slurm node."""

    folder: str | None = None  # in which the jobs start; null: that of this command
    python: str | None = None  # null: this command's own, or python in a container
    modules: list[str] = field(default_factory=list)  # module load of each, in this order
    variables: dict[str, str] = field(default_factory=dict)  # environment.variables.GLOO_SOCKET_IFNAME=ib0
    container: str | None = None  # an image; null: no container
    runtime: str = "pyxis"  # of the container: pyxis (srun --container-image) | apptainer
    mounts: list[str] = field(default_factory=list)  # into the container: PATH, or PATH:PATH_INSIDE

    def __post_init__(self) -> None:
        if self.runtime not in ("pyxis", "apptainer"):
            raise InputError(f"environment.runtime={self.runtime} is not one of pyxis, apptainer.")
        for name in self.modules:
            if not _MODULE.fullmatch(name):
                raise InputError(f"environment.modules has {name!r}, which is no name of a module; give NAME/VERSION.")
        for name, value in self.variables.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise InputError(f"environment.variables.{name} is no name of a variable; use letters, digits and _.")
            if is_secret_name(name):
                raise InputError(
                    f"environment.variables.{name} is named like a secret, which the script would hold; export it where you "
                    "submit (Slurm passes the environment on), or use kubernetes.secret."
                )
            _check_line(f"environment.variables.{name}", value)
        for mount in self.mounts:
            _check_line("environment.mounts", mount)
            if "," in mount or not mount.startswith("/"):
                raise InputError(f"environment.mounts has {mount}, which is no absolute path without commas.")
        for name in ("folder", "python", "container"):
            if getattr(self, name) is not None:
                _check_line(f"environment.{name}", getattr(self, name))


@dataclass
class SlurmSettings:
    """The group `slurm`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: list[str] = field(default_factory=list)  # further ones of sbatch, for every job: [--constraint=a100]
    rendezvous: str = "static"  # static | c10d: how the nodes of a training meet (docs/security.md)
    port: int = 0  # on which the first node of several serves their store; 0: 20000 + job id modulo 10000
    max_requeues: int = 20  # how often a training queues up again by itself

    def __post_init__(self) -> None:
        if self.rendezvous not in ("static", "c10d"):
            raise InputError(f"slurm.rendezvous={self.rendezvous} is not one of static, c10d.")
        if not (self.port == 0 or 1024 <= self.port <= 65535):
            raise InputError(f"slurm.port={self.port} is neither 0 nor from 1024 to 65535.")
        if not 0 <= self.max_requeues <= 1000:
            raise InputError(f"slurm.max_requeues={self.max_requeues} is not from 0 to 1000.")
        for name in ("partition", "account", "qos"):
            if getattr(self, name) is not None:
                _check_line(f"slurm.{name}", getattr(self, name))
        for option in self.options:
            _check_line("slurm.options", option)
            if not re.match(r"--[a-z]", option):
                raise InputError(f"slurm.options has {option}, which is no option of sbatch; write it as --name=value.")


@dataclass
class KubernetesSettings:
    """The group `kubernetes`."""

    folder: str = "manifests"  # of this machine, for the manifests
    namespace: str = "default"
    spark_image: str = "entirespace-spark"  # of preprocess
    train_image: str = "entirespace-train"  # of train and evaluate
    score_image: str = "entirespace-score"  # of score: the trainer's image with Java
    user: int = 10001  # that all pods run as; the images have it
    claim: str | None = "shared"  # a PersistentVolumeClaim of all jobs; null: none
    mount: str = "/shared"  # where it is mounted
    secret: str | None = None  # a Secret whose entries become variables: AWS_ACCESS_KEY_ID, …
    service_account: str = "default"  # spark_as=sparkapplication and spark_submit need one that may make pods
    spark_as: str = "job"  # job (Spark in one pod) | sparkapplication (the Spark operator) | spark_submit (a script)
    train_as: str = "job"  # job (an indexed Job and a headless Service) | trainjob (Kubeflow Trainer v2)
    master: str = "https://kubernetes.default.svc"  # of spark_submit: the API server
    executors: int = 4  # of sparkapplication and spark_submit, each of sizes.spark
    shared_memory_gb: int = 8  # of /dev/shm, of a training
    kueue: str | None = None  # a LocalQueue of Kueue
    volcano: str | None = None  # a queue of Volcano, which then schedules
    retries: int = 20  # of a pod that was lost or ended with 75; a mistake (status 2) is never tried again

    def __post_init__(self) -> None:
        for key, choices in {
            "spark_as": ("job", "sparkapplication", "spark_submit"),
            "train_as": ("job", "trainjob"),
        }.items():
            if getattr(self, key) not in choices:
                raise InputError(f"kubernetes.{key}={getattr(self, key)} is not one of {', '.join(choices)}.")
        for key, least, most in (
            ("executors", 1, 10_000),
            ("shared_memory_gb", 1, 100_000),
            ("retries", 0, 1000),
            ("user", 1, 2**31 - 1),
        ):
            if not least <= getattr(self, key) <= most:
                raise InputError(f"kubernetes.{key}={getattr(self, key)} is not from {least} to {most}.")
        for key in ("namespace", "claim", "secret", "service_account", "kueue", "volcano"):
            text = getattr(self, key)
            if text is not None and not (_DNS_LABEL.fullmatch(text) and len(text) <= 63):
                raise InputError(
                    f"kubernetes.{key}={text} is no name of Kubernetes; use small letters, digits and hyphens."
                )
        for key in ("spark_image", "train_image", "score_image"):
            if not _IMAGE.fullmatch(getattr(self, key)):
                raise InputError(f"kubernetes.{key}={getattr(self, key)} is no name of an image; give NAME:TAG.")
        if not (self.mount.startswith("/") and self.mount.isprintable() and ":" not in self.mount):
            raise InputError(f"kubernetes.mount={self.mount!r} is no absolute path of a container.")
        if not re.fullmatch(r"https?://[\w.:\[\]/-]+", self.master):
            raise InputError(f"kubernetes.master={self.master} is no address of an API server; give https://HOST:6443.")
        if self.kueue and self.volcano:
            raise InputError("kubernetes.kueue and kubernetes.volcano are both set; a job has one queue: choose one.")


@dataclass
class SubmitSettings:
    """conf/submit.yaml. The *_args are further settings of a job, as on its command line: train_args='model=esm2'."""

    cluster: str = MISSING  # slurm | kubernetes
    out: str = MISSING  # of everything, on a file system that all nodes see: dataset, run, scores, logs
    raw: str | None = None  # the raw log; or give data
    data: str | None = None  # a dataset that is there: nothing is preprocessed
    score: str | None = None  # a raw log, labels not needed, that the run scores
    seeds: int = 0  # N: runs with seed 1 to N, as an array, in OUT/seed-1, …; 0: one run, in OUT
    table: str | None = None  # in place of train, evaluate and score: a table of jobs.reproduce, by an array of jobs
    table_jobs: int = 4  # of that array; they divide the table's runs among them
    name: str = "entirespace"  # what the names of the jobs begin with
    dry_run: bool = False  # print what would be submitted, and submit nothing
    preprocess_args: str = ""
    train_args: str = ""
    evaluate_args: str = ""
    score_args: str = ""
    table_args: str = ""  # seeds=5 systems=[…] train_args='…'
    sizes: JobSizes = field(default_factory=JobSizes)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise InputError(f"cluster={self.cluster} is not one of {', '.join(CLUSTERS)}.")
        if (self.raw is None) == (self.data is None):
            raise InputError("Give raw=RAW, a log to preprocess, or data=DATASET, one that is there: one of the two.")
        if not 0 <= self.seeds <= _LARGEST_ARRAY:
            raise InputError(f"seeds={self.seeds} is not from 0 to {_LARGEST_ARRAY}.")
        if not 1 <= self.table_jobs <= _LARGEST_ARRAY:
            raise InputError(f"table_jobs={self.table_jobs} is not from 1 to {_LARGEST_ARRAY}.")
        for key in ("name", "out", "raw", "data", "score", "table"):
            if getattr(self, key) is not None:
                _check_line(key, getattr(self, key))
        self._check_args()
        if self.table and (self.seeds or self.score):
            raise InputError(f"table={self.table} trains and evaluates by itself; leave seeds and score out.")
        if self.cluster == "kubernetes":
            self._check_for_kubernetes()

    def _check_args(self) -> None:
        for key in ("preprocess_args", "train_args", "evaluate_args", "score_args", "table_args"):
            for word in words_of_setting(key, getattr(self, key)):
                _check_line(key, word)
                name = word.partition("=")[0].lstrip("+~")
                if name in ("data", "out", "run") or (self.seeds and name in ("seed", "plan.seed")):
                    raise InputError(f"{key} has {word}, which this command sets itself; leave it out.")

    def _check_for_kubernetes(self) -> None:
        if not (_DNS_LABEL.fullmatch(self.name) and len(self.name) <= _MOST_LETTERS_OF_A_NAME):
            raise InputError(
                f"name={self.name} is no name of Kubernetes; use small letters, digits and hyphens, {_MOST_LETTERS_OF_A_NAME} at most."
            )
        if self.table:
            raise InputError("table=… is an array of Slurm; on Kubernetes run jobs.reproduce itself in a Job.")
        for key in ("out", "raw", "data", "score"):
            path = getattr(self, key)
            if path is not None and not (is_address(path) or path.startswith("/")):
                raise InputError(f"{key}={path} is relative; give the path that the pods see, such as /shared/{path}.")

    def chain(self) -> ChainSettings:
        """Return the settings of the same chain on one machine."""
        return ChainSettings(
            raw=self.raw or "",
            out=self.out,
            preprocess_args=self.preprocess_args,
            train_args=self.train_args,
            evaluate_args=self.evaluate_args,
            score_args=self.score_args,
        )


def absolute_path(path: str) -> str:
    """Return a path from the root; an address as it is."""
    return path if is_address(path) else str(Path(os.path.abspath(os.path.expanduser(path))))
