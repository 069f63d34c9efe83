"""A report as one HTML page that needs nothing else: no script, no other file, no network.

Light and dark, on a phone, on paper, and read aloud. Whatever comes from data is escaped.
"""

import base64
import struct
from html import escape

from s2f import charts
from s2f.console import one_line
from s2f.report import Curves, Matrix, Part, Picture, Report, Section, Table, numeric, show

STYLE = (
    charts.STYLE
    + """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--paper:#fff;--rule:#d5dae0}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#9aa4b0;--paper:#15181c;
--rule:#353b44}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:64rem;color:var(--ink);background:var(--paper);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.25rem;margin:2.5rem 0 .5rem;
border-top:1px solid var(--rule);padding-top:1rem}
p{max-width:44rem}a{color:inherit}
nav ol{columns:14rem;padding-left:1.5rem}
dl{display:grid;grid-template-columns:fit-content(40%) minmax(0,1fr);gap:.25rem 1rem}
dt{color:var(--dim)}dd{margin:0}
figure{margin:1.5rem 0}figcaption{font-weight:600;margin-bottom:.4rem}
.note,details{color:var(--dim);font-size:.875rem}.note{margin:.4rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--rule);text-align:left;
vertical-align:bottom}
td{max-width:24rem}.n{text-align:right}td.n{white-space:nowrap}
tbody th:not(.n){min-width:7rem}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--paper)}
thead th{border-bottom:2px solid var(--rule)}
.matrix td,.matrix th+th{text-align:center;white-space:nowrap}
.matrix td,.matrix tbody th{vertical-align:middle}
.matrix td{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.matrix small{display:block}
img{max-width:100%;height:auto;background:#fff}
@media print{body{max-width:none;padding:0;font-size:10pt}.scroll{overflow:visible}
table,.note{font-size:8pt}th,td{padding:.2rem .35rem}tbody th:not(.n){min-width:4rem}
.chart{max-width:26rem}h2,figcaption{break-after:avoid}tr,img,svg{break-inside:avoid}details{display:none}}
"""
)
SHADE = "52,120,246"  # of a matrix; at half its strength ink is read on it, dark and light
# Even if something slipped in that is not escaped, nothing would be loaded or run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(report: Report) -> str:
    """Write a report as one self-contained page."""
    facts = "".join(f"<dt>{_safe(k)}</dt><dd>{_safe(v)}</dd>\n" for k, v in report.facts.items())
    contents = "".join(
        f'<li><a href="#s{n}">{_safe(section.title)}</a></li>\n'
        for n, section in enumerate(report.sections, start=1)
    )
    sections = "".join(_section(n, s) for n, s in enumerate(report.sections, start=1))
    title = _safe(report.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{title}</h1>\n"
        + (f"<dl>\n{facts}</dl>\n" if facts else "")
        + "</header>\n"
        + (f'<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n' if contents else "")
        + f"<main>\n{sections}</main>\n</body>\n</html>\n"
    )


def _section(n: int, section: Section) -> str:
    text = "".join(f"<p>{_safe(paragraph)}</p>\n" for paragraph in section.text)
    parts = "".join(_part(part) for part in section.parts)
    title = _safe(section.title)
    return (
        f'<section aria-labelledby="s{n}">\n<h2 id="s{n}">{title}</h2>\n{text}{parts}</section>\n'
    )


def _part(part: Part) -> str:
    """Write a part below its title and above its note."""
    match part:
        case Table():
            body = _scrolled(part.title, _table(part))
        case Matrix():
            body = _scrolled(part.title, _matrix(part))
        case Picture():
            body = _picture(part)
        case Curves():
            points = _scrolled(f"{part.title}: points", _table(part.table()))
            body = f"{charts.draw(part)}<details><summary>Points</summary>{points}</details>"
    note = f'<p class="note">{_safe(part.note)}</p>\n' if part.note else ""
    title = _safe(part.title)
    return f"<figure>\n<figcaption>{title}</figcaption>\n{body}\n{note}</figure>\n"


def _scrolled(title: str, table: str) -> str:
    """Let a wide table scroll by itself, also by keyboard."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_safe(title)}">{table}</div>'
    )


def _table(table: Table) -> str:
    kinds = [' class="n"' if numeric(table, k) else "" for k in range(len(table.heads))]
    heads = "".join(
        f'<th scope="col"{kind}>{_safe(head)}</th>'
        for head, kind in zip(table.heads, kinds, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for k, (cell, head, kind) in enumerate(zip(row, table.heads, kinds, strict=True)):
            start, end = ('<th scope="row"', "th") if k == 0 else ("<td", "td")
            cells.append(f"{start}{kind}>{_safe(show(cell, head))}</{end}>")
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>"


def _matrix(matrix: Matrix) -> str:
    names = [_safe(name) for name in matrix.classes]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for name, counts in zip(names, matrix.counts, strict=True):
        total = sum(counts)
        cells = []
        for n in counts:
            share = n / total if total else None
            percent = "" if share is None else " %"
            cells.append(
                f'<td style="background:rgba({SHADE},{(share or 0) / 2:.3f})">'
                f"{show(share, '%')}{percent}"
                f"<small>{show(n)}</small></td>"
            )
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>\n')
    corner = '<th scope="col">true, by row; taken for, by column</th>'
    return (
        f'<table class="matrix">\n<thead><tr>{corner}{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>"
    )


def _picture(picture: Picture) -> str:
    # Told before it is decoded, so that the page does not jump.
    width, height = struct.unpack(">II", picture.png[16:24])
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<img width="{width}" height="{height}" alt="{_safe(picture.alt)}" '
        f'src="data:image/png;base64,{data}">'
    )


def _safe(text: str) -> str:
    """Escape what a name may hold: markup, quotes, line ends, bytes that are no text."""
    return escape(one_line(text))
