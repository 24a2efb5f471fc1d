"""What a run tells: JSON lines, TensorBoard, and progress bars with rate and time left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm


class Log:
    """Metrics of a run as `metrics.jsonl` (one object a line, keys are paths) and, where installed, TensorBoard files.

    Opening it at `step` drops the lines after that step, so a resumed run has one history.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self._path) if line["step"] <= step]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self._path.open("a")
        self._board = _board(folder / "tensorboard", step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics at an environment step."""
        line = {"step": step} | {k: float(v) for k, v in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in line.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; a line that a crash cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which readers see when it is whole; until then, and after a crash or an error, the old one."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk it would be in the way of everything else
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, even across a crash."""
    with atomic(path) as file:
        file.write(data)


def progress(what: str, total: int | None = None, unit: str = "it", start: int = 0,
             items: Iterable[Any] | None = None) -> tqdm:
    """A progress bar on stderr with rate and time left; in a file, which keeps every state of it, one a minute."""
    return tqdm(items, desc=what, total=total, unit=unit, initial=start, dynamic_ncols=True, smoothing=0.05,
                mininterval=0.5 if sys.stderr.isatty() else 60.0)


def _board(folder: Path, step: int) -> Any:
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    del step
    return Writer(str(folder))
