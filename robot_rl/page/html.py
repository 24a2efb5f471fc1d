"""The pieces of a self-contained HTML page: no script, no file beside it, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark;
  --ground: #fbfbf9; --ink: #1c1e22; --soft: #5b616b; --line: #dcdfe3; --grid: #e8eaed; --code: #f1f2f3;
  --before: #747d8b; --after: #2b52cf; --good: #0a7868; --bad: #c5441a; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #131518; --ink: #e9ebee; --soft: #a4abb6; --line: #343941; --grid: #272b31; --code: #1d2126;
  --before: #9aa4b4; --after: #8ba6ff; --good: #48c4ae; --bad: #ff8c60; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Inter, Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1216px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: clamp(1.7rem, 4.4vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; font-weight: 680;
  margin: 6px 0 14px; text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; font-weight: 660; margin: 0 0 6px; }
h3 { font-size: 1rem; font-weight: 650; margin: 30px 0 2px; }
p { max-width: 68ch; margin: 0 0 12px; }
.eyebrow { color: var(--soft); font-size: .875rem; margin: 0; max-width: none; }
.lead { font-size: 1.125rem; line-height: 1.5; max-width: 62ch; margin-bottom: 16px; }
.soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .9375rem; margin-top: 16px; }
a { color: var(--after); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
section { border-top: 1px solid var(--line); padding-top: 26px; margin-top: 44px; }
.columns { display: grid; gap: 26px 38px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr));
  margin-top: 18px; align-items: start; }
.columns > * { min-width: 0; }
.columns > .wide { grid-column: span 2; }
@media (max-width: 780px) { .columns > .wide { grid-column: auto; } }
.numbers { display: grid; gap: 18px 38px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  margin: 22px 0 8px; }
.numbers dt { color: var(--soft); font-size: .875rem; line-height: 1.35; }
.numbers dd { margin: 0; font-size: 1.75rem; line-height: 1.25; font-weight: 640; letter-spacing: -.02em;
  white-space: nowrap; }
.numbers small { font-size: 1rem; font-weight: 450; letter-spacing: 0; color: var(--soft); }
figure { margin: 0; max-width: 480px; }
figure > b { display: block; font-weight: 650; line-height: 1.35; }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.45; margin-top: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .8125rem; color: var(--soft); margin: 2px 0 8px; }
.legend span::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; background: currentColor; }
.legend .dot::before { width: 8px; height: 8px; border-radius: 50%; }
.legend .ring::before { width: 9px; height: 9px; border-radius: 50%; background: none; border: 1.5px solid; }
.legend span > i { font-style: normal; color: var(--soft); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); }
svg .label { fill: var(--ink); }
svg .name { fill: var(--ink); font-size: 13px; }
svg .note { font-size: 11.5px; }
svg .note, svg .halo { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
.before { color: var(--before); } .after, .only { color: var(--after); }
.good { color: var(--good); } .bad { color: var(--bad); } .ink { color: var(--ink); }
svg text.before, svg text.after, svg text.only { fill: currentColor; }
.grid, .axis { fill: none; stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--soft); }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.fine { stroke-width: 1.1; opacity: .78; }
.line.faint { stroke-width: 1.3; opacity: .8; }
.band { fill: currentColor; opacity: .13; }
.area { fill: currentColor; fill-opacity: .13; stroke: currentColor; stroke-width: 1.5; }
.dot, .bar { fill: currentColor; }
.dot.faint { opacity: .55; }
.ring { fill: currentColor; fill-opacity: .09; stroke: currentColor; stroke-width: 1.1; }
.mark, .whisker { fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; }
.rule, .flag { fill: none; stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 3; }
.flag { stroke: currentColor; }
.scroll { overflow-x: auto; }
.narrow { max-width: 800px; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th { text-align: left; font-weight: 550; color: var(--soft); font-size: .875rem; vertical-align: bottom; }
th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
td { vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
td b { font-weight: 650; }
details { margin-top: 26px; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 10px; }
.stills { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(46%, 250px), 1fr));
  margin-top: 10px; }
.stills img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--code); }
pre { background: var(--code); border-radius: 6px; padding: 12px 14px; margin: 8px 0 18px; overflow-x: auto;
  font: .8125rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
ul { padding-left: 1.2em; margin: 0 0 12px; max-width: 68ch; }
@media (max-width: 480px) { th, td { padding: 7px 9px 7px 0; } table { font-size: .8125rem; }
  th { font-size: .8125rem; } .scores th:last-child, .scores td:last-child { display: none; }
  .numbers { grid-template-columns: 1fr 1fr; gap: 16px 20px; } }
@media print { section, figure { break-inside: avoid; } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """The whole document; `style` is added to the style that all pages share."""
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
            "</body>\n</html>\n")


def section(name: str, title: str, body: str) -> str:
    """A part of the page that links can point at."""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'


def figure(title: str, picture: str, caption: str = "", legend: Sequence[tuple[str, str]] = ()) -> str:
    """A picture with its title above, its legend of (classes, words), and a caption in plain words below."""
    return (f"<figure><b>{escape(title)}</b>" + key(legend) + picture
            + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>")


def key(legend: Sequence[tuple[str, str]]) -> str:
    """What each series (classes, words) of a picture is; nothing for none."""
    words = "".join(f'<span class="{classes}"><i>{escape(words)}</i></span>' for classes, words in legend)
    return f'<div class="legend">{words}</div>' if words else ""


def columns(parts: Iterable[str]) -> str:
    """Parts side by side, as many as fit."""
    return f'<div class="columns">{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table; cells are HTML. The first `text_columns` are text, the others numbers."""
    kinds = ["" if i < text_columns else ' class="number"' for i in range(len(head))]
    top = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, head, strict=True))
    body = "".join("<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
                   for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str, kind: str = "") -> str:
    """Plain words."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain words."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def code(*lines: str) -> str:
    """Commands to copy."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
