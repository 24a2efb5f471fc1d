def cameras(tracks: Tracks) -> str:
    """First and last picture of every camera in one failed and one successful episode, of the same goal if possible."""
    out = ""
    for track, words in _chosen(tracks):
        try:
            found = stills(track.bag, int(track.stamps_ns[0]))
        except ValueError as error:
            out += f"<h3>{escape(words)}</h3>" + page.paragraph(str(error), "soft")
            continue
        pictures = "".join(
            f'<figure><img src="{data_uri(picture)}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
            f'alt="{escape(camera)} camera, {when} picture"><figcaption>{escape(camera)}, {when}</figcaption></figure>'
            for topic, pair in found.items() for camera in [topic.strip("/").split("/")[-2]]
            for when, picture in zip(("first", "last"), pair, strict=True))
        if pictures:
            out += f'<h3>{escape(words)}</h3><div class="stills">{pictures}</div>'
    return out


def _chosen(tracks: Tracks) -> list[tuple[Track, str]]:
    lost = [(key, i) for key in ("before", "only", "after") for i, t in enumerate(tracks.get(key, ()))
            if t.success is False]
    won = [(key, i) for key in ("after", "only", "before") for i, t in enumerate(tracks.get(key, ())) if t.success]
    pair = next(((a, b) for a in lost for b in won if a[1] == b[1] and a[0] != b[0] and _paired(tracks)), None)
    picked = list(pair) if pair else [*lost[:1], *won[:1]]
    same = " (same goal)" if pair else ""
    return [(tracks[key][i], f"{tracks[key][i].outcome.capitalize()}{', ' + WORDS[key] if key != 'only' else ''}"
             f": {tracks[key][i].bag.name}{same if k else ''}") for k, (key, i) in enumerate(picked)]
