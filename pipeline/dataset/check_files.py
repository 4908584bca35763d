"""Compare every file of a dataset with its manifest, a few at a time: an object store answers after 20 to 100 ms."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.dataset.manifest import Manifest, dataset_files

_AT_ONCE = 8


def check_files(dataset: str, manifest: Manifest, with_checksums: bool) -> None:
    """Raise InputError for the first file that is missing, not regular, or of another size or checksum.

    These are the data, the quarantine and the vocabularies. The manifest does not have the sizes of vocabularies.
    """
    files = dataset_files(dataset)
    sizes = {file.path: file.bytes for file in manifest.files}
    sums = {file.path: file.xxh3 for file in manifest.files}
    for entry in manifest.audit.get("quarantine", ()):
        sizes[entry["path"]], sums[entry["path"]] = entry["bytes"], entry["xxh3"]
    sums |= {field.vocabulary: field.vocabulary_xxh3 for field in manifest.fields if field.vocabulary}
    checks: list[Callable[[], object]] = [partial(files.stamp, name) for name in sums if name not in sizes]
    checks += [partial(files.check_size, name, num_bytes) for name, num_bytes in sizes.items()]
    if with_checksums:
        checks += [partial(files.check_content, name, xxh3) for name, xxh3 in sums.items()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = [pool.submit(check) for check in checks]
        try:
            for result in results:
                result.result()
        finally:
            for result in results:
                result.cancel()
