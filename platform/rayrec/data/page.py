"""Parts of an HTML page: its frame, cards and tables of counts. All names are escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rayrec.artifacts import canonical

STYLE = Path(__file__).with_name("report.css")
SHOWN = 20
"""Rows of a table of names; the rest is summed up in one more."""


GENERATOR = '<meta name="generator" content="rayrec">'
"""What tells our pages from others."""


def document(title: str, header: str, tiles: str, sections: Sequence[str], note: str) -> str:
    """A whole page that needs no network. All but ``title`` is HTML."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        # Whatever a log holds, the page loads and runs nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'{GENERATOR}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body>"
        f'{header}<main>{tiles}<div class="grid">{"".join(sections)}</div></main>'
        f"<footer>{note}</footer></body></html>\n"
    )


def balance(whole: str, total: int, left_out: Mapping[str, int], rest: str, kept: int) -> str:
    """A table from a total to what is left of it, checked."""
    missing = total - sum(left_out.values()) - kept
    check = (
        '<p class="note good">✓ The sums add up.</p>'
        if not missing
        else f'<p class="note bad">✗ The sums do not add up: {missing:,} unaccounted for.</p>'
    )

    def row(name: str, count: int, sign: str = "", kind: str = "") -> str:
        cells = f"<td>{sign}{count:,}</td><td>{percent(count / max(1, total))}</td>"
        return f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>'

    rows = [row(whole, total), *(row(name, count, "−") for name, count in left_out.items())]
    rows.append(row(rest, kept, "= ", ' class="total"'))
    return table(["", "Count", "Share"], rows) + check


def section(title: str, body: str, wide: bool = False) -> str:
    """A card with a title; ``body`` is HTML."""
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h2>{escape(title)}</h2>{body}</section>"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table with these titles of columns, if any; ``rows`` are HTML."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in head)
    return f"<table>{f'<thead><tr>{heads}</tr></thead>' if head else ''}<tbody>{''.join(rows)}</tbody></table>"


def ranked(what: str, counts: Mapping[str, int], total: int, counted: str = "Count") -> str:
    """Names with their counts, the largest first and the smallest summed up."""
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown, rest = dict(order[:SHOWN]), order[SHOWN:]
    if rest:
        shown[f"{len(rest):,} others"] = sum(count for _, count in rest)
    return shares(what, shown, total, counted)


def shares(what: str, counts: Mapping[str, int], total: int, counted: str = "Count") -> str:
    """Names with their count and share of ``total``."""
    rows = []
    for name, count in counts.items():
        share = count / max(1, total)
        bar = f'<td class="share"><span style="width:{100 * share:.2f}%"></span></td>'
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{count:,}</td><td>{percent(share)}</td>{bar}</tr>')
    return table([what, counted, "Share", ""], rows)


def percent(share: float) -> str:
    """Three digits, however small, never as a power of ten."""
    if share == 0:
        return "0 %"
    digits = 1 if share >= 0.01 else min(12, 1 - math.floor(math.log10(share * 100)))
    return f"{100 * share:.{digits}f} %"


def text(value: Any) -> str:
    """Any JSON value, escaped."""
    return escape(value if isinstance(value, str) else canonical(value).decode())
