"""What a person sees of a job: colours, bars, tables and the block at its end. A file gets plain lines, and few.

Colours and bars are for a terminal alone. NO_COLOR (https://no-color.org) and TERM=dumb switch colours off.
"""

import os
import shlex
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

from pipeline.errors import printable, with_addresses

#: Set for a job that is a stage of another one, such as jobs.demo.
IN_CHAIN = "ENTIRESPACE_IN_CHAIN"
_STYLES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "blue": "36"}
#: A bar without room for its numbers is left out by tqdm, so the title gets at most this share of the line.
_TITLE_SHARE = 0.5
#: How often a stage is asked how far it is: on a terminal, and elsewhere; and how often that is said elsewhere.
_WATCH_S, _PLAIN_WATCH_S, _PLAIN_LINE_S = 0.3, 5.0, 60.0
_CLEAR_LINE = "\r\x1b[K"


def has_colors(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that may show colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO) -> str:
    """Put the colour or weight `style` around `text`, where `stream` shows colours."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_colors(stream) else text


def command_of(job: str, *words: str) -> str:
    """Return the command that starts a job with these words, to be copied into a shell."""
    return f"python -m {job} {shlex.join(words)}"


def duration_text(seconds: float) -> str:
    """Write a time: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_text(num_bytes: float) -> str:
    """Format bytes in kB, MB or GB."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= divisor:
            return f"{num_bytes / divisor:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def text_width(text: str) -> int:
    """Count the columns that a text takes: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def text_table(rows: Sequence[Sequence[str]], columns_left: int = 1) -> list[str]:
    """Align rows of cells, the first `columns_left` columns to the left and the others to the right; the first row is a heading."""
    widths = [max(text_width(cell) for cell in column) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            gap = " " * (width - text_width(cell))
            padded.append(cell + gap if number < columns_left else gap + cell)
        return "  ".join(padded).rstrip()

    return [line(cells) for cells in rows]


def line_width(stream: TextIO) -> int | None:
    """Return the columns of a line of `stream`; None where it is no terminal and a line may have any length."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def print_next(command: str, stream: TextIO | None = None) -> None:
    """Print the command that comes next; nothing where this job is a stage of another one, which types it itself."""
    stream = stream or sys.stdout
    if not os.environ.get(IN_CHAIN):
        print(f"{styled('next:', 'blue', stream)} {printable(with_addresses(command))}", file=stream, flush=True)


def close_job(
    made: str,
    where: str,
    seconds: float | None = None,
    numbers: Sequence[str] = (),
    warnings: Sequence[str] = (),
    pages: Sequence[str] = (),
    following: str = "",
    stream: TextIO | None = None,
) -> None:
    """Print what a job has made, where, in what time, the numbers that matter, warnings, pages to open and the next command."""
    stream = stream or sys.stdout
    sys.stdout.flush()
    took = f" · {duration_text(seconds)}" if seconds is not None else ""
    print(
        f"{styled(made, 'green', stream)}: {styled(printable(with_addresses(where)), 'bold', stream)}{took}",
        file=stream,
    )
    if numbers:
        print(f"  {' · '.join(numbers)}", file=stream)
    for page in pages:
        print(f"  open {printable(with_addresses(page))}", file=stream)
    stream.flush()
    for warning in warnings:
        print(
            f"{styled('warning:', 'yellow', sys.stderr)} {printable(with_addresses(warning))}",
            file=sys.stderr,
            flush=True,
        )
    if following:
        print_next(following, stream)


def open_bar(title: str, total: float, unit: str, done: float = 0, keep: bool = False) -> Any:
    """Open tqdm's bar on stderr: it fits any width, and is off where stderr is no terminal. `keep` leaves it there at the end."""
    return tqdm(
        total=total,
        initial=done,
        desc=_fitting(title, _TITLE_SHARE),
        unit=unit,
        unit_scale=unit == "B" or total >= 10_000,
        dynamic_ncols=True,
        leave=keep,
        disable=not sys.stderr.isatty(),
        file=sys.stderr,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]",
    )


class Bar:
    """The progress of a stage on stderr: a bar on a terminal, and a line a minute elsewhere.

    Without a `total` it says only that the stage has begun, and how long it took.
    """

    def __init__(self, title: str, total: float = 0, unit: str = "", every_s: float = _PLAIN_LINE_S) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done: float = 0
        self._started = self._line_s = time.monotonic()
        self._every_s = every_s
        self._on_terminal = sys.stderr.isatty()
        self._bar = open_bar(title, total, unit if unit == "B" else f" {unit}") if total > 0 else None
        if self._bar is None and self._on_terminal:
            # The cursor goes back: a line of the stage itself, or the bar of one inside it, is written over this one.
            print(f"{_CLEAR_LINE}{_fitting(title, 1.0)} …", end="\r", file=sys.stderr, flush=True)
        elif not self._on_terminal:
            print(f"{title} …", file=sys.stderr, flush=True)

    def update_to(self, done: float) -> None:
        """Show that `done` of the total is done; less than before counts for nothing."""
        if done <= self.done or self._bar is None:
            return
        step, self.done = min(done, self.total) - self.done, min(done, self.total)
        self._bar.update(step)
        if not self._on_terminal and time.monotonic() - self._line_s >= self._every_s and self.done < self.total:
            self._line_s = time.monotonic()
            done_text, total_text = (
                size_text(number) if self.unit == "B" else f"{number:,.0f}" for number in (self.done, self.total)
            )
            text = f"{self.done / self.total:.0%}, {done_text} of {total_text}"
            print(f"{self.title}: {text if self.unit == 'B' else f'{text} {self.unit}'}", file=sys.stderr, flush=True)

    def close(self, summary: str | None) -> None:
        """Replace the bar by a line with `summary` and the time taken; None: the stage has failed, and says nothing."""
        if self._bar is not None:
            self._bar.close()
        if summary is not None:
            took = duration_text(time.monotonic() - self._started)
            mark = f"{_CLEAR_LINE}{styled('✓', 'green', sys.stderr)} " if self._on_terminal else ""
            print(f"{mark}{self.title}: {summary}{', ' if summary else ''}{took}", file=sys.stderr)
        elif self._on_terminal:
            print(_CLEAR_LINE, end="", file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def stage(
    title: str, total: float = 0, unit: str = "", summary: str = "", done: Callable[[], float] | None = None
) -> Iterator[Bar]:
    """Show a stage for the length of the block; `done`, where it is given, is asked now and then how far it is."""
    bar = Bar(title, total, unit)
    stop = threading.Event()

    every_s = _WATCH_S if sys.stderr.isatty() else _PLAIN_WATCH_S

    def watch(ask: Callable[[], float]) -> None:
        with suppress(Exception):  # the JVM may have ended: the stage itself says so
            while not stop.wait(every_s):
                bar.update_to(ask())

    watcher = threading.Thread(target=watch, args=(done,), daemon=True) if done else None
    if watcher:
        watcher.start()
    succeeded = False
    try:
        yield bar
        succeeded = True
    finally:
        stop.set()
        if watcher:
            watcher.join()
        bar.close(summary if succeeded else None)


def _fitting(title: str, share: float) -> str:
    """Cut a title to its share of the terminal's line."""
    room = max(8, int(shutil.get_terminal_size().columns * share) - 2)
    return title if len(title) <= room else f"{title[: room - 1]}…"
