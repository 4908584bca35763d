"""The reason and the remedy of an error of the file system."""

import errno
import os

import pytest

from pipeline.errors import InputError, reading, reason_of, writing


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there, or choose another out."),
        (errno.EDQUOT, "make room there, or choose another out."),
        (errno.EACCES, "give this user the right to write there, or choose another out."),
        (errno.EROFS, "mount it for writing, or choose another out."),
        (errno.EMFILE, "raise the limit of open files (ulimit -n 4096)."),
        (errno.ENOMEM, "give the job more memory."),
        (errno.ENAMETOOLONG, "choose another out."),
    ],
)
def test_a_place_that_cannot_be_written_has_the_remedy_of_its_reason(number: int, remedy: str) -> None:
    with pytest.raises(InputError) as caught, writing("out=/data"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"out=/data cannot be written ({os.strerror(number)}); {remedy}"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "raise the limit of open files (ulimit -n 4096)."),
        (errno.EACCES, "give this user the right to read it."),
        (errno.EIO, "repair or replace it."),
    ],
)
def test_a_file_is_blamed_for_its_own_faults_alone(number: int, remedy: str) -> None:
    with pytest.raises(InputError) as caught, reading("/data/part"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"/data/part cannot be read ({os.strerror(number)}); {remedy}"


def test_an_address_keeps_the_remedy_of_addresses_and_another_place_its_own() -> None:
    with pytest.raises(InputError, match=r"check the bucket, AWS_ENDPOINT_URL"), writing("out=s3://bucket/data"):
        raise OSError("When uploading: AWS Error ACCESS_DENIED")
    with (
        pytest.raises(InputError, match=r"make room there, or set TMPDIR to a larger one\."),
        writing("TMPDIR=/tmp", instead="set TMPDIR to a larger one"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_reason_of_an_arrow_error_does_not_repeat_the_path() -> None:
    arrow = OSError(
        errno.EMFILE, "[Errno 24] Failed to open local file '/data/x'. Detail: [errno 24] Too many open files"
    )
    assert reason_of(arrow) == "Too many open files"


def test_a_message_that_quotes_a_long_value_keeps_its_place_and_its_remedy() -> None:
    message = str(InputError(f"seed={'7' * 100_000} does not fit 64 bits; give a smaller number."))
    assert message.startswith("seed=777")
    assert message.endswith("777 does not fit 64 bits; give a smaller number.")
    assert " … " in message
    assert len(message) < 1250
