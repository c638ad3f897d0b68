"""The claim table, the budget line and plain tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nsw.runs.table import short
from nsw.widgets.frontend import emit

_MARK = {"holds": ("\u2713", "#00734d"), "not reproduced": ("\u2717", "#b00020"), "not asserted": ("\u2013", "#555")}


def table(rows: Sequence[Mapping[str, Any]], caption: str = "", heads: Mapping[str, str] | None = None) -> None:
    """Show rows of named values as a table; the first row names the columns, and one that is empty in all rows is left out.

    Args:
        heads: what to write above columns whose names are those of variables.
    """
    columns = [column for column in (rows[0] if rows else ()) if any(_text(row.get(column, "")) for row in rows)]
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    columns = [(heads or {}).get(column, column) for column in columns]
    emit(
        {
            "text/html": html_table(columns, [[html.escape(c) for c in row] for row in cells], caption),
            "text/plain": _plain(columns, cells),
        }
    )


def _text(value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float):
        return "\u2013" if math.isnan(value) else short(value)
    if isinstance(value, int) and abs(value) >= 1e4:
        return f"{value:,}"
    return "" if value is None else str(value)


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", note: str = "") -> str:
    """Return an HTML table; the cells of `rows` are HTML already."""
    left = 'style="text-align:left;vertical-align:top;white-space:normal;padding-right:0.8em"'
    head = "".join(f'<th scope="col" {left}>{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td {left}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    title = f'<caption style="text-align:left;font-weight:600;caption-side:top">{html.escape(caption)}</caption>' if caption else ""
    under = f'<div style="font-size:0.85em;opacity:0.85">{note}</div>' if note else ""
    return f'<div style="overflow-x:auto"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{under}</div>'


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def claim_table(claims: Iterable[Any], edited: Sequence[str] | None = None, note: str | None = None) -> None:
    """Show claims as a table: verdict in words and with a mark, this run's numbers, and the paper's beside them.

    Args:
        claims: rows with the attributes of `nsw.runs.claims.Claim`.
        edited: names of swapped functions, which forbid certification; by default those of `nsw.widgets.edited()`.
        note: the protocol line under the table; by default that of nsw.metrics.
    """
    rows = list(claims)
    text, plain = claim_html(rows, edited, note), _claim_plain(rows)
    emit({"text/html": text, "text/plain": plain})


def claim_html(rows: Sequence[Any], edited: Sequence[str] | None = None, note: str | None = None) -> str:
    """Return the claim table as HTML."""
    if edited is None:
        from nsw.widgets.editing import edited as edited_now

        edited = edited_now()
    if note is None:
        note = html.escape(_protocol())
    banner = ""
    if edited:
        banner = (
            '<p role="status" style="border-left:4px solid #D55E00;padding:0.3em 0.8em"><b>Not certified:</b> '
            f"{html.escape(', '.join(edited))} is edited. <code>nsw.widgets.restore()</code> brings the original back.</p>"
        )
    columns = ["verdict", "claim", "baseline", "ours", "measured", "asked", "paper"]
    body = [[_verdict(row.verdict, bool(edited)), *(html.escape(cell) for cell in _cells(row))] for row in rows]
    return banner + html_table(columns, body, "Claims, measured in this run", note)


def _verdict(verdict: str, uncertified: bool) -> str:
    if uncertified and verdict == "holds":
        return '<span style="white-space:nowrap;color:#b35900">! not certified</span>'
    mark, colour = _MARK.get(verdict, ("?", "#555"))
    return f'<span style="white-space:nowrap;font-weight:600;color:{colour}">{mark} {html.escape(verdict)}</span>'


def _cells(row: Any) -> list[str]:
    """Return the cells of a claim after its verdict."""
    paper = "; ".join(part for part in (row.paper, row.paper_value, row.dataset, row.hardware) if part)
    return [row.title, _mean(row.baseline, row.baseline_values, row.unit), _mean(row.ours, row.ours_values, row.unit),
            row.measured + _spread(row), row.asked, paper]  # fmt: skip


def _mean(mean: float | None, values: Sequence[float], unit: str) -> str:
    if mean is None:
        return "\u2013"
    spread = f" ({short(min(values))} to {short(max(values))}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{short(mean)} {unit}".rstrip() + spread


def _spread(row: Any) -> str:
    """Return the spread of the gain over this run's seeds and over recorded runs."""
    parts = []
    if len(row.gain_values) > 1:
        parts.append(f"{_range(min(row.gain_values), max(row.gain_values))} over {len(row.gain_values)} seeds")
    recorded = row.recorded
    if recorded and recorded.get("n", 0) > 1:
        parts.append(f"recorded: {_range(recorded['min'], recorded['max'])} over {recorded['n']:g} seeds")
    return f" ({'; '.join(parts)})" if parts else ""


def _range(low: float, high: float) -> str:
    """Return both ends, or one number where they are written alike.

    >>> _range(0.2143, 0.2144), _range(0.5, 1.25)
    ('0.214', '0.5 to 1.25')
    """
    ends = dict.fromkeys((f"{low:.3g}", f"{high:.3g}"))
    return " to ".join(ends)


def _protocol() -> str:
    """Return the one line that says how pictures are measured, when the metrics are at hand."""
    from nsw import metrics

    return metrics.describe()


def _claim_plain(rows: Sequence[Any]) -> str:
    columns = ["verdict", "claim", "baseline", "ours", "measured", "asked", "paper"]
    return _plain(columns, [[row.verdict, *_cells(row)] for row in rows])


def budget(slug: str) -> None:
    """Show what the runner measured for a notebook: time and memory per preset, on which machine and when."""
    from nsw.runs import measured

    recorded = measured.load().get(slug, {})
    rows = []
    for preset in ("smoke", "laptop", "gpu"):
        entry = recorded.get(preset)
        if entry is None:
            rows.append([preset, "not measured yet", "", "", ""])
            continue
        rows.append([preset, _time(entry["seconds"]), f"{entry['peak_mb'] / 1000:.1f} GB", entry["hardware"], entry["date"]])
    columns = ["preset", "time", "peak memory", "measured on", "date"]
    text = html_table(columns, [[html.escape(str(c)) for c in row] for row in rows], f"Budget of {slug}")
    emit({"text/html": text, "text/plain": _plain(columns, [[str(c) for c in row] for row in rows])})


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
