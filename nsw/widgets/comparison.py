"""Two pictures under one draggable divider."""

from __future__ import annotations

from typing import Any

import anywidget
import numpy as np
import traitlets

from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.frontend import emit, live
from nsw.widgets.picture_widget import TO_URL

_ESM = (
    TO_URL
    + """
function render({ model, el }) {
  const box = document.createElement("div");
  box.style.cssText = "position:relative;display:block;max-width:100%;overflow:hidden";
  box.style.cssText += ";touch-action:none;cursor:ew-resize;user-select:none";
  const image = (name) => {
    const img = document.createElement("img");
    img.src = toUrl(model.get(name));
    img.draggable = false;
    img.alt = "";
    img.style.cssText = "width:100%;display:block";
    return img;
  };
  const below = image("right"), above = image("left");
  above.style.position = "absolute";
  above.style.inset = "0";
  const bar = document.createElement("div");
  bar.style.cssText = "position:absolute;top:0;bottom:0;width:4px;margin-left:-2px;background:#fff;box-shadow:0 0 0 1px #000";
  bar.tabIndex = 0;
  bar.setAttribute("role", "slider");
  bar.setAttribute("aria-label", model.get("alt"));
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  const tag = (text, side) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.style.cssText = "position:absolute;bottom:4px;background:rgba(0,0,0,.65);color:#fff;font-size:12px";
    span.style.cssText += ";line-height:1.4;padding:0 5px;" + side + ":4px";
    return span;
  };
  const tags = ["left", "right"].map((side, i) => tag(model.get("labels")[i], side));
  box.append(below, above, bar, ...tags);
  el.append(box);
  const place = () => {
    const at = model.get("position");
    above.style.clipPath = `inset(0 ${100 - at}% 0 0)`;
    bar.style.left = at + "%";
    bar.setAttribute("aria-valuenow", Math.round(at));
  };
  const move = (at) => {
    model.set("position", Math.max(0, Math.min(100, at)));
    model.save_changes();
  };
  const follow = (event) => {
    const r = box.getBoundingClientRect();
    move((100 * (event.clientX - r.left)) / r.width);
  };
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    follow(event);
    bar.focus();
    event.preventDefault();
  });
  box.addEventListener("pointermove", (event) => { if (event.buttons & 1) follow(event); });
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(model.get("position") + step);
  });
  box.style.width = model.get("css_width") + "px";
  for (const img of [above, below]) img.style.imageRendering = model.get("pixelated") ? "pixelated" : "auto";
  model.on("change:position", place);
  place();
}
export default { render };
"""
)


class ComparisonBar(anywidget.AnyWidget):
    """The live bar; `position` is where the divider stands, percent from the left."""

    _esm = _ESM
    left = traitlets.Bytes(b"").tag(sync=True)
    right = traitlets.Bytes(b"").tag(sync=True)
    labels = traitlets.List(traitlets.Unicode(), default_value=["left", "right"]).tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    css_width = traitlets.Int(pictures.MIN_WIDTH).tag(sync=True)
    pixelated = traitlets.Bool(True).tag(sync=True)
    position = traitlets.Float(50.0).tag(sync=True)


def compare(left: Any, right: Any, labels: tuple[str, str] = ("left", "right"), alt: str = "", caption: str | None = None):
    """Show two pictures of one size under a divider that is dragged or moved with the arrow keys.

    Without a live front end the two stand side by side.

    Args:
        left, right: anything `pictures.to_array` takes; both [H, W].
        labels: their names.
        alt: what the comparison shows.
    """
    alt, labels = pictures.need_alt(alt), tuple(str(label) for label in labels)
    a, b = pictures.to_array(left), pictures.to_array(right)
    if a.shape != b.shape:
        raise InputError(f"compare() needs two pictures of one size, got {list(a.shape[:2])} and {list(b.shape[:2])}: resize one.")
    emit(*still(a, b, labels, alt, caption, bar(a, b, labels, alt) if live() else None))


def bar(a: np.ndarray, b: np.ndarray, labels: tuple[str, ...], alt: str, position: float = 50.0) -> ComparisonBar:
    """Return the live bar over two pictures of one size; all that it shows is there from the start, see `PixelPicker`."""
    width = pictures.shown_width(a.shape[1], least=384)
    look = dict(left=pictures.png_bytes(a), right=pictures.png_bytes(b), css_width=width, pixelated=width > a.shape[1])
    return ComparisonBar(labels=list(labels), alt=alt, position=position, **look)


def still(a: np.ndarray, b: np.ndarray, labels: tuple[str, ...], alt: str, caption: str | None, widget: Any):
    """Return bundle, widget and metadata of the side-by-side still."""
    import html

    tile = pictures.shown_width(a.shape[1], room=375, least=320)
    sheet = pictures.contact_sheet({labels[0]: pictures.enlarged(a, tile), f"{labels[1]}": pictures.enlarged(b, tile)}, 2)
    cells = "".join(
        f'<div style="width:{tile}px;max-width:100%">{pictures.img_tag(array, f"{label}: {alt}", tile)}'
        f'<div style="text-align:center;font-size:0.9em">{html.escape(label)}</div></div>'
        for label, array in zip(labels, (a, b), strict=True)
    )
    under = f'<figcaption style="font-size:0.9em;opacity:0.85">{html.escape(caption)}</figcaption>' if caption else ""
    text = f'<figure style="margin:0.3em 0"><div style="display:flex;gap:10px;flex-wrap:wrap">{cells}</div>{under}</figure>'
    return pictures.bundle(sheet, alt, text), widget, {"image/png": {"alt": alt, "width": sheet.shape[1]}}
