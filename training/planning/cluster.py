"""A cluster in words, for planning a run on machines that are not here: `8x8xH100` is 8 hosts of 8 H100s each."""

import re
from dataclasses import dataclass

from pipeline.errors import InputError

_GB = 1e9
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """What a rank runs on, by its maker's data sheet."""

    memory_bytes: float  # 0: a share of the host's
    memory_bytes_per_s: float
    link_bytes_per_s: float  # to the other devices of its host, one way


#: NVLink counts both ways on a data sheet; half of it stands here. PCIe: 3.0 x16 for T4, 4.0 x16 for L4 and A10.
DEVICES = {
    "H200": Device(141 * _GB, 4800 * _GB, 450 * _GB),
    "H100": Device(80 * _GB, 3350 * _GB, 450 * _GB),
    "A100": Device(80 * _GB, 2039 * _GB, 300 * _GB),
    "A100-40": Device(40 * _GB, 1555 * _GB, 300 * _GB),
    "V100": Device(32 * _GB, 900 * _GB, 150 * _GB),
    "V100-16": Device(16 * _GB, 900 * _GB, 150 * _GB),
    "A10": Device(24 * _GB, 600 * _GB, 32 * _GB),
    "L4": Device(24 * _GB, 300 * _GB, 32 * _GB),
    "T4": Device(16 * _GB, 320 * _GB, 16 * _GB),
    CPU: Device(0, 40 * _GB, 10 * _GB),  # of a rank with a few cores: a guess, and used for costs alone
}
_WORDS = re.compile(r"(\d+)x(\d+)x(\S+)\Z")


@dataclass(frozen=True)
class Cluster:
    """Hosts of equal devices, one rank each."""

    hosts: int
    per_host: int
    name: str  # of the device
    host_memory_bytes: float
    network_bytes_per_s: float  # between hosts, for each rank

    @property
    def num_ranks(self) -> int:
        """The ranks of the run."""
        return self.hosts * self.per_host

    @property
    def device(self) -> Device:
        """Each rank's."""
        return DEVICES[self.name]

    @property
    def is_cpu(self) -> bool:
        """Whether the ranks have no GPU."""
        return self.name == CPU

    @property
    def host_share_bytes(self) -> float:
        """A rank's share of its host's memory."""
        return self.host_memory_bytes / self.per_host

    @property
    def memory_bytes(self) -> float:
        """Where a rank's tables and towers lie: the GPU's memory, or its share of the host's."""
        return self.host_share_bytes if self.is_cpu else self.device.memory_bytes

    def __str__(self) -> str:
        return f"{self.hosts}x{self.per_host}x{self.name}"


def cluster_of(text: str, host_memory_gb: float, network_gbit_per_s: float) -> Cluster:
    """Parse `hosts x devices a host x device`; InputError if it is not of that form, or the device is unknown."""
    match = _WORDS.match(text)
    names = {name.lower(): name for name in DEVICES}
    if not match or match.group(3).lower() not in names or min(int(match.group(1)), int(match.group(2))) < 1:
        raise InputError(
            f"cluster={text} is not of the form hosts x devices a host x device, as in 8x8xH100; "
            f"devices: {', '.join(DEVICES)}."
        )
    for key, value in (("host_memory_gb", host_memory_gb), ("network_gbit_per_s", network_gbit_per_s)):
        if not value > 0:
            raise InputError(f"{key}={value} is not above 0.")
    hosts, per_host = int(match.group(1)), int(match.group(2))
    network = network_gbit_per_s * _GB / 8
    return Cluster(hosts, per_host, names[match.group(3).lower()], host_memory_gb * _GB, network)
