"""The person beside the robot: prompts on stdout, Enter on stdin, without ever waiting for it."""

from __future__ import annotations

import os
import select
import sys


class Operator:
    """Lines of stdin as they come."""

    def __init__(self) -> None:
        self._text = b""
        self.gone = False
        """Whether stdin has ended: nobody will press Enter any more."""

    def ask(self, text: str) -> None:
        """Say something, and forget what was typed before."""
        while self.entered():
            pass
        print(text, flush=True)

    def entered(self) -> bool:
        """Whether Enter was pressed since the last time that this was true."""
        if b"\n" not in self._text and not self.gone and select.select([0], [], [], 0)[0]:
            got = os.read(0, 4096)
            self.gone = not got
            self._text += got
        _, enter, rest = self._text.partition(b"\n")
        if enter:
            self._text = rest
        return bool(enter)


def say(text: str) -> None:
    """Tell the operator of something that happened."""
    print(text, file=sys.stderr, flush=True)
