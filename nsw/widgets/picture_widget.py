"""The one live picture that sliders, the ray inspector and the training panel share."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from nsw.widgets import pictures

# Pictures travel to the page as data URLs: object URLs die with the view that made them, and a view may be moved.
TO_URL = """
function toUrl(data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return "data:image/png;base64," + btoa(text);
}
"""

_ESM = (
    TO_URL
    + """
function render({ model, el }) {
  const box = document.createElement("div");
  box.style.cssText = "position:relative;display:inline-block;max-width:100%;line-height:0";
  const img = document.createElement("img");
  img.style.cssText = "max-width:100%;height:auto;display:block";
  const cross = document.createElement("div");
  cross.style.cssText = "position:absolute;box-sizing:border-box;border:2px solid #fff;outline:2px solid #000";
  cross.style.cssText += ";pointer-events:none;display:none";
  const line = document.createElement("div");
  line.setAttribute("role", "alert");
  line.style.cssText = "color:#b00020;font-size:0.9em;line-height:1.4;overflow-wrap:anywhere";
  box.append(img, cross);
  el.append(box, line);
  const paint = () => { img.src = toUrl(model.get("png")); };
  const dress = () => {
    img.alt = model.get("alt");
    img.style.width = model.get("css_width") + "px";
    img.style.imageRendering = model.get("css_width") > model.get("columns") ? "pixelated" : "auto";
    line.textContent = model.get("error");
    const [row, column] = model.get("picked");
    cross.style.display = model.get("clickable") && row >= 0 ? "block" : "none";
    cross.style.left = (100 * column) / model.get("columns") + "%";
    cross.style.top = (100 * row) / model.get("rows") + "%";
    cross.style.width = `max(8px, ${100 / model.get("columns")}%)`;
    cross.style.height = `max(8px, ${100 / model.get("rows")}%)`;
  };
  const pick = (row, column) => {
    const inside = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v)));
    model.set("picked", [inside(row, model.get("rows")), inside(column, model.get("columns"))]);
    model.save_changes();
  };
  if (model.get("clickable")) {
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", model.get("alt") + " Click a pixel, or move the mark with the arrow keys.");
    img.style.cursor = "crosshair";
    img.draggable = false;
    img.addEventListener("click", (event) => {
      const place = img.getBoundingClientRect();
      pick(((event.clientY - place.top) / place.height) * model.get("rows"),
           ((event.clientX - place.left) / place.width) * model.get("columns"));
      box.focus();
    });
    box.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      const [row, column] = model.get("picked");
      const step = event.shiftKey ? 10 : 1;
      pick(row + step * move[0], column + step * move[1]);
    });
  }
  model.on("change:png", paint);
  for (const name of ["alt", "css_width", "error", "picked", "rows", "columns"]) model.on("change:" + name, dress);
  paint();
  dress();
}
export default { render };
"""
)


class Picture(anywidget.AnyWidget):
    """A PNG with alt text, an error line under it and, when `clickable`, a mark that mouse and arrow keys move.

    `picked` is (row, column) of the marked pixel.
    """

    _esm = _ESM
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    css_width = traitlets.Int(pictures.MIN_WIDTH).tag(sync=True)
    rows = traitlets.Int(1).tag(sync=True)
    columns = traitlets.Int(1).tag(sync=True)
    clickable = traitlets.Bool(False).tag(sync=True)
    picked = traitlets.List(traitlets.Int(), default_value=[-1, -1]).tag(sync=True)

    def show_image(self, image: Any, css_width: int | None = None) -> None:
        """Replace the picture; `css_width` keeps its place on the page when a coarse one has fewer pixels."""
        array = pictures.to_array(image)
        with self.hold_sync():
            self.rows, self.columns = array.shape[:2]
            self.css_width = css_width or pictures.shown_width(array.shape[1])
            self.png = pictures.png_bytes(array)
            self.error = ""


def picture(image: Any, alt: str, clickable: bool = False, css_width: int | None = None) -> Picture:
    """Return a live picture of anything `pictures.to_array` takes."""
    out = Picture(alt=pictures.need_alt(alt), clickable=clickable)
    out.show_image(image, css_width)
    return out
