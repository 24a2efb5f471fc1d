def timing(tracks: Tracks, figures: Mapping[str, Any]) -> str:
    """How the control loop kept its deadlines, and what the safety filter did."""
    found = {}
    for key in WORDS:
        if figures.get(key, {}).get("lateness_ms", {}).get("counts"):
            found[key] = Timing.told(figures[key])
        elif tracks.get(key):
            found[key] = Timing.recorded(tracks[key])
    if not found:
        return ""
    late = _histograms({k: (t.lateness, t.lateness_p50, t.lateness_p99) for k, t in found.items()},
                       "Lateness of the ticks", "How late each tick woke against the absolute schedule.")
    latency = _histograms({k: (t.latency, t.latency_p50, t.latency_p99) for k, t in found.items()},
                          "Observation to command", "From the take of the newest sensor messages to the return of the "
                          "publish call: observation, network, safety filter and message.")
    return _timing_table(found) + page.columns([late, latency, _safety(tracks, found)])


def _timing_table(found: Mapping[str, Timing]) -> str:
    rows = [("Control rate", lambda t: f"{t.rate_hz:g} Hz"), ("Ticks", lambda t: f"{t.ticks:,}"),
            ("Missed deadlines (skipped periods)", lambda t: f"{t.missed:,}"),
            ("Lateness, median", lambda t: _ms(t.lateness_p50)), ("Lateness, 99th percentile",
                                                                   lambda t: _ms(t.lateness_p99)),
            ("Observation to command, median", lambda t: _ms(t.latency_p50)),
            ("Observation to command, 99th percentile", lambda t: _ms(t.latency_p99)),
            ("Ticks with a safety event", lambda t: f"{t.events:,} ({t.events / max(t.ticks, 1):.1%})")]
    return page.table(["", *(escape(WORDS[key].capitalize()) for key in found)],
                      [[escape(name), *(tell(t) for t in found.values())] for name, tell in rows])


def _histograms(found: Mapping[str, tuple[Any, float, float]], title: str, caption: str) -> str:
    some = [(edges[:-1][counts > 0].min(), edges[1:][counts > 0].max(), counts.max())
            for (edges, counts), _, _ in found.values() if counts.sum()]
    if not some:
        return ""
    low, high, most = min(s[0] for s in some), max(s[1] for s in some), max(s[2] for s in some)
    chart = Chart(Axis(low, high, "ms", log=True), Axis(0.7, most * 3.0 ** (1 + len(found)), "ticks", log=True))
    for row, (key, ((edges, counts), p50, p99)) in enumerate(found.items()):
        filled = np.flatnonzero(counts)
        part = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0)
        chart.histogram(edges[part.start:part.stop + 1], counts[part], key)
        for name, value in (("p50", p50), ("p99", p99)):
            if np.isfinite(value):
                chart.flag(value, key, f"{name} {_ms(value)}", row)
    return page.figure(title, chart.svg(f"histogram, {title.lower()}, ms"), caption + " Both scales are logarithmic.",
                       [(key, WORDS[key]) for key in found])


def _safety(tracks: Tracks, found: Mapping[str, Timing]) -> str:
    shares = {key: reason_shares(tracks[key]) for key in found if tracks.get(key)}
    if not shares:
        return page.figure("Safety events by reason", "", "The bags that tell the reasons are not in this folder.")
    seen = [r for r in REASONS if any(r in s for s in shares.values())]
    caption = ("Share of ticks at which the safety filter changed the command, or a fault was found, by reason. A tick "
               "can have several.")
    if not seen:
        return page.figure("Safety events by reason", "", "None: the safety filter changed no command.")
    rows = {REASONS[r]: [(key, s.get(r, 0.0)) for key, s in shares.items()] for r in seen}
    return page.figure("Safety events by reason", bars(rows, "share of ticks", "safety events by reason"), caption,
                       [(key, WORDS[key]) for key in shares])


def _ms(value: float) -> str:
    return "unknown" if not np.isfinite(value) else f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"
