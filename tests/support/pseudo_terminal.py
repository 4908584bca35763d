"""Run a command on a pseudo-terminal of a chosen width, and read what a person would see there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_terminal(
    command: Sequence[str], columns: int, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Return the exit status, and every byte that the command wrote."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=inherited | {"TERM": "xterm"} | dict(environment or {})
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # EIO: the last writer has closed it
                break
            if not part:
                break
            written += part
    os.close(master)
    return process.returncode, written.decode("utf-8", "replace")


def drawn_lines(written: str) -> list[str]:
    """Return each line as it was at any time, redrawn ones included, without colours."""
    return [line for line in re.split(r"[\r\n]+", _ESCAPES.sub("", written)) if line.strip()]


def last_screen(written: str) -> list[str]:
    """Return the lines that stand there at the end, without colours: a carriage return begins a line anew."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        place = 0
        for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r)", line):
            if piece == "\r":
                place = 0
            elif piece == "\x1b[K":
                del cells[place:]
            elif not piece.startswith("\x1b"):
                cells[place : place + len(piece)] = piece
                place += len(piece)
        lines.append("".join(cells).rstrip())
    return lines
