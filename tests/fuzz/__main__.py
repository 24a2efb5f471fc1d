"""Coverage-guided fuzzing of one parser, from real files and messages that are made at run time.

    pip install 'robot-rl[fuzz]' -c constraints.txt
    python -m tests.fuzz cdr --seconds 60

What the parser must not do, another error than its own, a hang of 10 s or more memory than stated, ends the run with
status 77 and leaves the input in `--artifacts`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

folder = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
if child := os.fork():  # libFuzzer ends its process as it stands, so that another one has to tidy up
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(os.waitstatus_to_exitcode(status))
tempfile.tempdir = folder

import atheris  # noqa: E402

READERS = dict.fromkeys(("robot", "camera", "arm", "metadata"), "yaml") | dict.fromkeys(("cdr", "readings"), "rosbags")
"""What is guided by too where it is all that happens; elsewhere it would only make each try slower."""

with atheris.instrument_imports(include=["robot_rl", "hardware", *(READERS[w] for w in sys.argv if w in READERS)]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target for so long."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzz a parser.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=int, default=3, help="address space, GiB")
    parser.add_argument("--artifacts", type=Path, default=Path("."), help="folder for inputs that were found")
    args = parser.parse_args()
    target = TARGETS[args.target]
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (args.memory << 30, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for seed in target.seeds():
            (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
        lines = ["".join(f"\\x{byte:02x}" for byte in word) for word in target.words if len(word) < 64]
        words.write_text("".join(f'"{line}"\n' for line in lines))

        def one(data: bytes) -> None:
            with contextlib.suppress(target.raises):
                target.parse(data)

        args.artifacts.mkdir(parents=True, exist_ok=True)
        longest = max(map(len, target.seeds())) * 2
        atheris.Setup([sys.argv[0], str(corpus), f"-dict={words}", f"-max_total_time={args.seconds}", "-timeout=10",
                       f"-seed={args.seed}", f"-max_len={max(4096, longest)}", "-print_final_stats=1",
                       "-rss_limit_mb=0", f"-artifact_prefix={args.artifacts}/{args.target}-"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
