"""The frame of a page: style and skeleton, and the pieces that more than one page has."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

# Placeholders: all of them HTML already escaped. The policy forbids scripts and any fetch.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title · entirespace</title>
<style>
:root { color-scheme: light dark; --page: #ffffff; --card: #f7f8fa; --ink: #1c2330; --soft: #5b6472; --rule: #dfe3e8;
  --grid: #e6e9ee; --c0: #2463d1; --c1: #d9730d; --c2: #1a8a5a; --c3: #8a3fc4; --bad: #c22a2a; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1a2029; --ink: #e6eaf0; --soft: #9aa5b4;
  --rule: #2c3440; --grid: #29313c; --c0: #6ea3ff; --c1: #ffab5e; --c2: #5fd0a0; --c3: #c79bf2; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1320px; margin: 0 auto; padding: 36px 28px 64px; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 18px; letter-spacing: -0.005em; }
.note { margin: 10px 0 0; max-width: 92ch; color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { font-weight: 500; text-align: left; }
td { text-align: right; white-space: nowrap; }
.headline { width: 100%; }
.headline td, .headline th { padding: 9px 14px; border-bottom: 1px solid var(--rule); vertical-align: middle; }
.headline thead th { text-align: right; color: var(--soft); font-size: 13px; }
.headline tbody th { padding-left: 0; font-weight: 600; }
.headline thead td { padding: 0; }
.headline td:nth-child(2) { font-weight: 650; font-size: 17px; }
.headline small { display: block; color: var(--soft); font-weight: 400; font-size: 13px; }
meter { display: inline-block; width: 64px; height: 10px; margin-left: 8px; vertical-align: baseline; }
.none { color: var(--soft); }
.funnel { width: 100%; }
.funnel th, .funnel td { padding: 5px 14px 5px 0; }
.funnel td { color: var(--soft); }
.funnel td:nth-child(2) { color: var(--ink); font-weight: 600; }
.funnel .bar { width: 46%; }
.funnel .bar i { display: block; height: 14px; border-radius: 3px; background: var(--c0); opacity: .8; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 18px; }
figure { margin: 0; padding: 14px 14px 8px; max-width: 640px; background: var(--card); border-radius: 10px; }
figcaption { font-size: 13.5px; }
figcaption b { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; min-height: 1.5em; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 18px; margin-right: 6px; vertical-align: middle;
  border-top: 2.5px solid var(--line); }
.key-dashed::before { border-top-style: dashed; border-top-width: 2px; }
.key-points::before { width: 8px; height: 8px; border: 0; border-radius: 50%; background: var(--line); }
svg { display: block; width: 100%; height: auto; margin-top: 4px; }
svg text { fill: var(--soft); font-size: 11px; }
svg .label { font-size: 11.5px; text-anchor: middle; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { fill: none; stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
.line.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.line.points { stroke-width: 1.2; opacity: .7; }
.line.steps { stroke-width: 1.6; fill: var(--line); fill-opacity: .14; }
circle { fill: var(--line); }
.c0 { --line: var(--c0); } .c1 { --line: var(--c1); } .c2 { --line: var(--c2); } .c3 { --line: var(--c3); }
.quiet { --line: var(--soft); }
details { border: 1px solid var(--rule); border-radius: 10px; padding: 10px 16px; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.every { margin-top: 10px; font-size: 13px; }
.every th { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-weight: 400; padding-right: 28px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); column-gap: 40px; align-items: start; }
.pair > section { min-width: 0; }
.scroll + .figures { margin-top: 18px; }
.data { font-size: 14px; }
.data th, .data td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
.data thead th { color: var(--soft); font-size: 13px; text-align: right; vertical-align: bottom; }
.data thead th:first-child { text-align: left; }
.data small { display: block; color: var(--soft); font-weight: 400; font-size: 12px; }
.data em { color: var(--soft); font-style: normal; font-size: 12px; margin-right: 6px; }
.data meter { width: 48px; }
details code b { color: var(--c1); font-weight: 400; }
.data td i { display: block; height: 6px; margin: 4px 0 0 auto; border-radius: 3px; background: var(--c0); opacity: .8; }
.data .good { color: var(--c2); } .data .fair { color: var(--c1); } .data .bad { color: var(--bad); font-weight: 650; }
.warning { margin-top: 24px; padding: 2px 18px 8px; border-left: 4px solid var(--bad); background: var(--card); border-radius: 6px; }
.warning h2 { margin-top: 14px; color: var(--bad); }
details { margin-top: 8px; }
details code { overflow-wrap: anywhere; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 600px) { main { padding: 24px 16px 48px; } .data { font-size: 13px; } .data th, .data td { padding-right: 10px; } }
@media print { details::details-content { content-visibility: visible; height: auto; }
  :root { --page: #ffffff; --card: #f7f8fa; --ink: #1c2330; --soft: #5b6472; --rule: #dfe3e8; --grid: #e6e9ee; } }
@media print { main { max-width: none; padding: 0; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header><h1>$heading</h1><p>entirespace · $subtitle</p></header>
$body
</main>
</body>
</html>
""")


def page(heading: str, title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole page; the sections are HTML, the rest is text."""
    body = "\n".join(sections)
    return _PAGE.substitute(heading=escape(heading), title=escape(title), subtitle=escape(subtitle), body=body)


def section(title: str, *content: str) -> str:
    """A heading, and HTML below it."""
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"


def pair(*sections: str) -> str:
    """Sections side by side where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>'


def details(summary: str, content: str) -> str:
    """HTML that a click unfolds."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def note(text: str) -> str:
    """A remark below a table or a chart; HTML."""
    return f'<p class="note">{text}</p>'


def percent(share: float, digits: int = 3) -> str:
    """As many significant digits: 3.89 %."""
    return f"{100 * share:.{digits}g} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of HTML cells, the first of each its name; wide ones scroll by themselves."""
    first, *others = head
    columns = f"<th scope=col>{first}</th>" + "".join(f"<th scope=col>{name}</th>" for name in others)
    body = "".join(
        f"<tr><th scope=row>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="data"><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'
    )
