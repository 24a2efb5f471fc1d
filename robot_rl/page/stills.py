"""Camera stills out of bags, and a small PNG writer for them."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from pathlib import Path

import numpy as np

from hardware.robot_io import rgb
from robot_rl.bag import info, read
from robot_rl.page import html
from robot_rl.page.tracks import WORDS, Track, Tracks, paired
from robot_rl.spec import COMPRESSED, IMAGE

WIDEST = 480  # pixels, of a still


def cameras(tracks: Tracks) -> str:
    """First and last picture of every camera in one failed and one successful episode, of the same goal if possible."""
    out = ""
    for track, words in _chosen(tracks):
        try:
            found = stills(track.bag, int(track.stamps_ns[0]))
        except ValueError as error:
            out += f"<h3>{escape(words)}</h3>" + html.paragraph(f"{track.bag}: {error}", "soft")
            continue
        pictures = "".join(_still(topic, when, picture) for topic, pair in found.items()
                           for when, picture in zip(("first", "last"), pair, strict=True))
        out += f'<h3>{escape(words)}</h3><div class="stills">{pictures}</div>'
    return out


def _still(topic: str, when: str, picture: np.ndarray) -> str:
    camera, (height, width, _) = escape(topic.strip("/").removesuffix("/compressed").rsplit("/", 1)[0]), picture.shape
    return (f'<figure><img src="{data_uri(picture)}" width="{width}" height="{height}" alt="{when} picture of camera '
            f'{camera}"><figcaption>{camera}, {when}</figcaption></figure>')


def _chosen(tracks: Tracks) -> list[tuple[Track, str]]:
    """A failure and a success that were filmed, with a title."""
    order = {"bad": ("before", "only", "after"), "good": ("after", "only", "before")}
    lost, won = ([(key, i, t) for key in order[series] for i, t in enumerate(tracks.get(key, ()))
                  if t.series == series and _filmed(t.bag)] for series in ("bad", "good"))
    same = ((a, b) for a in lost for b in won if a[1] == b[1] and a[0] != b[0]) if paired(tracks) else iter(())
    pair = next(same, None)
    same_goal = ("", ", the same goal") if pair else ("", "")
    return [(track, f"{WORDS[key].capitalize()}: {track.outcome} ({track.bag.name}{said})")
            for (key, _, track), said in zip(pair or [*lost[:1], *won[:1]], same_goal)]  # noqa: B905 (may be fewer)


def _filmed(bag: Path) -> bool:
    return any(topic.type in (IMAGE, COMPRESSED) and topic.count for topic in info(bag).topics.values())


def stills(bag: Path, since_ns: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By image topic: the first picture not older than `since_ns` and the last one, each (H, W, 3) uint8 rgb.

    Raises ValueError for an image encoding other than rgb8, bgr8 and JPEG.
    """
    topics = {name: topic.type for name, topic in info(bag).topics.items() if topic.type in (IMAGE, COMPRESSED)}
    ends: dict[str, list[bytes]] = {}
    for message in read(bag, topics) if topics else ():
        if message.publish_ns >= since_ns:
            ends[message.topic] = [ends.get(message.topic, [message.data])[0], message.data]
    return {topic: (rgb(first, topics[topic]), rgb(last, topics[topic]))
            for topic, (first, last) in sorted(ends.items())}


def data_uri(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 rgb as the text of an <img> source; shrunk by a whole factor to `WIDEST` or less."""
    return "data:image/png;base64," + base64.b64encode(png(shrink(picture, WIDEST))).decode()


def shrink(picture: np.ndarray, widest: int) -> np.ndarray:
    """The picture at a whole fraction of its size, by averaging blocks."""
    k = -(-picture.shape[1] // widest)
    height, width = (n // k for n in picture.shape[:2])
    blocks = picture[:height * k, :width * k].reshape(height, k, width, k, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8) if k > 1 else picture


def png(picture: np.ndarray) -> bytes:
    """The bytes of a PNG file of (H, W, 3) uint8 rgb."""
    height, width, _ = picture.shape
    rows = np.full((height, 1 + 3 * width), 4, np.uint8)  # 4: every row is filtered by Paeth's predictor
    rows[:, 1:] = (picture - _paeth(picture)).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, rgb, not interlaced
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _paeth(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: of left, above and upper left, the one nearest to left + above - upper left."""
    around = np.pad(picture.astype(np.int16), ((1, 0), (1, 0), (0, 0)))
    left, above, corner = around[1:, :-1], around[:-1, 1:], around[:-1, :-1]
    guess = left + above - corner
    a, b, c = (np.abs(guess - n) for n in (left, above, corner))
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner)).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
