"""The map of methods: what follows from what, each box a link to its notebook, future ones greyed."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nsw.widgets.frontend import emit


@dataclass(frozen=True)
class Method:
    """One box: `slug` is its notebook's name after the number, `family` its row, `after` the slugs it builds on."""

    slug: str
    title: str
    year: int
    family: str
    after: tuple[str, ...] = ()


FIELDS, GRIDS, SPLATS, SURFACES, PRIORS = FAMILIES = (
    "Fields in a network",
    "Fields on a grid",
    "Splats",
    "Surfaces",
    "Priors and generation",
)

METHODS = (
    Method("nerf", "NeRF", 2020, FIELDS),
    Method("dietnerf", "DietNeRF", 2021, FIELDS, ("nerf",)),
    Method("s3im", "S3IM", 2023, FIELDS, ("nerf",)),
    Method("nerdf", "NeRDF", 2023, FIELDS, ("nerf",)),
    Method("plenoxels", "Plenoxels", 2022, GRIDS, ("nerf",)),
    Method("dvgo", "DVGO", 2022, GRIDS, ("nerf",)),
    Method("tensorf", "TensoRF", 2022, GRIDS, ("dvgo",)),
    Method("instant_ngp", "Instant-NGP", 2022, GRIDS, ("dvgo",)),
    Method("hollownerf", "HollowNeRF", 2023, GRIDS, ("instant_ngp",)),
    Method("pvd", "PVD", 2023, GRIDS, ("tensorf",)),
    Method("pvd_al", "PVD-AL", 2023, GRIDS, ("pvd",)),
    Method("gaussian_splatting", "3D Gaussians", 2023, SPLATS, ("dvgo",)),
    Method("gaussian_splatting_2d", "2D Gaussians", 2024, SPLATS, ("gaussian_splatting",)),
    Method("mcmc", "3DGS as MCMC", 2024, SPLATS, ("gaussian_splatting",)),
    Method("compact_3dgs", "Compact 3DGS", 2024, SPLATS, ("gaussian_splatting",)),
    Method("deblurring_3dgs", "Deblurring", 2024, SPLATS, ("gaussian_splatting",)),
    Method("feature_3dgs", "Feature 3DGS", 2024, SPLATS, ("gaussian_splatting",)),
    Method("citygaussian_v2", "CityGaussianV2", 2025, SPLATS, ("gaussian_splatting_2d",)),
    Method("gaussian_stitching", "Stitching", 2025, SPLATS, ("gaussian_splatting",)),
    Method("sags", "SAGS", 2024, SPLATS, ("gaussian_splatting",)),
    Method("mvgs", "MVGS", 2024, SPLATS, ("gaussian_splatting",)),
    Method("neus", "NeuS", 2021, SURFACES, ("nerf",)),
    Method("volsdf", "VolSDF", 2021, SURFACES, ("nerf",)),
    Method("adaptive_shells", "Adaptive shells", 2023, SURFACES, ("neus",)),
    Method("epigraf", "EpiGRAF", 2022, PRIORS, ("nerf",)),
    Method("score_distillation", "Score distillation", 2022, PRIORS, ("nerf",)),
    Method("nerfbusters", "Nerfbusters", 2023, PRIORS, ("nerf",)),
)

_BOX_WIDTH, _BOX_HEIGHT, _COLUMN, _ROW, _LEFT, _TOP = 108, 34, 122, 0, 92, 34
_COLOURS = {FIELDS: "#0072B2", GRIDS: "#00734d", SPLATS: "#B34700", SURFACES: "#AA4499", PRIORS: "#7A6000"}


def notebooks_of(folder: Path) -> dict[str, str]:
    """Return slug -> file name of the numbered notebooks in a folder.

    >>> notebooks_of(Path("no such folder"))
    {}
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb")) if folder.is_dir() else []
    return {path.stem[3:]: path.name for path in found}


def _places(methods: Iterable[Method]) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]], int]:
    """Return where each box stands, the (top, bottom) of each family's row, and the height of the whole.

    A column is a year; boxes of one family and year stand below each other.
    """
    methods = tuple(methods)
    first = min(method.year for method in methods)
    places: dict[str, tuple[int, int]] = {}
    rows: dict[str, tuple[int, int]] = {}
    y = _TOP
    for family in FAMILIES:
        stacked: dict[int, int] = {}
        for method in (m for m in methods if m.family == family):
            n = stacked.get(method.year, 0)
            stacked[method.year] = n + 1
            places[method.slug] = (_LEFT + (method.year - first) * _COLUMN, y + 6 + n * (_BOX_HEIGHT + 6))
        if stacked:
            height = max(stacked.values()) * (_BOX_HEIGHT + 6) + 8
            rows[family] = (y, y + height)
            y += height
    return places, rows, y


def map_html(present: dict[str, str], link: str = "{file}") -> str:
    """Return the map as HTML: rows and arrows are SVG, boxes lie over it as links.

    The links are HTML's own because JupyterLab resolves their addresses, and cannot do so for links inside SVG.

    Args:
        present: slug -> notebook file, of the notebooks that exist.
        link: pattern of a box's address, with {file}.
    """
    methods = (*METHODS, *(Method(slug, slug.replace("_", " "), 2025, PRIORS) for slug in _unknown(present)))
    places, rows, height = _places(methods)
    years = range(min(m.year for m in methods), max(m.year for m in methods) + 1)
    width = _LEFT + len(years) * _COLUMN
    parts = [
        f'<text x="{_LEFT + i * _COLUMN + _BOX_WIDTH / 2}" y="20" text-anchor="middle">{year}</text>'
        for i, year in enumerate(years)
    ]
    for i, (family, (top, bottom)) in enumerate(rows.items()):
        parts.append(
            f'<rect x="0" y="{top}" width="{width}" height="{bottom - top}" fill="{"#f2f2f2" if i % 2 == 0 else "#fff"}"/>'
        )
        words = family.split(" ", 1) if len(family) > 12 else [family]
        for n, word in enumerate(words):
            y = (top + bottom) / 2 + 4 + (n - (len(words) - 1) / 2) * 15
            parts.append(f'<text x="6" y="{y}" font-size="12">{word}</text>')
    for method in sorted(methods, key=lambda m: m.slug in present):
        colour = "#444" if method.slug in present else "#c4c4c4"
        parts += [_arrow(places[a], places[method.slug], colour) for a in method.after if a in places]
    here = ", ".join(m.title for m in methods if m.slug in present) or "none yet"
    label = html.escape(f"Map of methods by family and year. With a notebook: {here}.", quote=True)
    boxes = "".join(_box(method, places[method.slug], present, link) for method in methods)
    return (
        f'<div role="group" aria-label="{label}" style="position:relative;width:{width}px;height:{height}px;background:#fff;'
        'font:13px Arial,Helvetica,sans-serif">'
        f'<svg xmlns="http://www.w3.org/2000/svg" aria-hidden="true" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" fill="#222"><defs><marker id="nsw-tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="#777"/></marker></defs>{"".join(parts)}</svg>{boxes}</div>'
    )


def _unknown(present: dict[str, str]) -> list[str]:
    """Return slugs of notebooks that the map does not name yet, so that a new one is never missing from it."""
    return [slug for slug in present if slug != "start" and slug not in {method.slug for method in METHODS}]


def _arrow(start: tuple[int, int], end: tuple[int, int], colour: str) -> str:
    line = f'stroke="{colour}" fill="none" marker-end="url(#nsw-tip)"'
    x0, y0 = start[0] + _BOX_WIDTH, start[1] + _BOX_HEIGHT / 2
    x1, y1 = end[0], end[1] + _BOX_HEIGHT / 2
    if start[0] == end[0]:
        x0, y0, x1, y1 = start[0] + 20, start[1] + _BOX_HEIGHT, end[0] + 20, end[1]
        return f'<path d="M{x0} {y0}L{x1} {y1}" {line}/>'
    bend = (x1 - x0) / 2
    return f'<path d="M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}" {line}/>'


def _box(method: Method, place: tuple[int, int], present: dict[str, str], link: str) -> str:
    """Return one box, placed over the drawing; a link when its notebook exists."""
    file = present.get(method.slug)
    text = html.escape(method.title)
    style = (
        f"position:absolute;left:{place[0]}px;top:{place[1]}px;width:{_BOX_WIDTH}px;height:{_BOX_HEIGHT}px;box-sizing:border-box;"
        f"line-height:{_BOX_HEIGHT - 2}px;text-align:center;border-radius:5px;text-decoration:none;"
        "font-size:12px;white-space:nowrap;border:1px solid "
    )
    if file is None:
        look = f"{style}#bbb;background:#e6e6e6;color:#5c5c5c"
        return f'<span style="{look}" title="{text} ({method.year}): no notebook yet">{text}</span>'
    address, name = html.escape(link.format(file=file), quote=True), html.escape(file, quote=True)
    colour = _COLOURS[method.family]
    look = f"{style}{colour};background:{colour};color:#fff"
    return f'<a href="{address}" style="{look}" title="open {name}">{text}</a>'


def method_map(folder: str | Path = ".") -> None:
    """Show the map of methods; a coloured box opens its notebook, a grey one is to come.

    Args:
        folder: where the notebooks lie; by default the folder of the notebook that asks.
    """
    present = notebooks_of(Path(folder))
    if not present:
        from nsw.widgets.source_card import root

        present = notebooks_of(root() / "notebooks")
    listed = "".join(
        f'<li><a href="{html.escape(file, quote=True)}">{html.escape(file)}</a></li>' for file in sorted(present.values())
    )
    more = f"<details><summary>The notebooks as a list</summary><ul>{listed}</ul></details>"
    text = f'<div style="overflow-x:auto">{map_html(present)}{more}</div>'
    emit({"text/html": text, "text/plain": "\n".join(sorted(present.values()))})
