"""PySpark's daemon of a local master: its workers end in silence when the JVM has closed their socket.

At the end of a session the JVM closes the sockets of idle workers, and then has the daemon end them. A worker that
notices the first before the second reports it to the JVM, which listens no more, and PySpark prints a trace of
BrokenPipeError on the user's terminal, after the job has succeeded (3 of 12 small jobs).
"""

import os
import socket

import pyspark.daemon

_worker = pyspark.daemon.worker


def worker(sock: socket.socket, authenticated: bool) -> int:
    """Run PySpark's worker."""
    try:
        return int(_worker(sock, authenticated))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)


if __name__ == "__main__":
    pyspark.daemon.worker = worker
    pyspark.daemon.manager()
