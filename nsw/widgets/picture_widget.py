"""Live pictures: one that is replaced while a slider moves or a model trains, and one whose pixels are chosen."""

from __future__ import annotations

from typing import Any

import anywidget
import ipywidgets
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
  cross.style.cssText += ";pointer-events:none";
  box.append(img, cross);
  el.append(box);
  img.src = toUrl(model.get("png"));
  img.alt = model.get("alt");
  img.style.width = model.get("css_width") + "px";
  img.style.imageRendering = model.get("css_width") > model.get("columns") ? "pixelated" : "auto";
  const boxed = model.get("picked").length === 4;
  const mark = () => {
    const [row, column, toRow = row, toColumn = column] = model.get("picked");
    const [top, left] = [Math.min(row, toRow), Math.min(column, toColumn)];
    cross.style.left = (100 * left) / model.get("columns") + "%";
    cross.style.top = (100 * top) / model.get("rows") + "%";
    cross.style.width = `max(8px, ${(100 * (Math.abs(toColumn - column) + 1)) / model.get("columns")}%)`;
    cross.style.height = `max(8px, ${(100 * (Math.abs(toRow - row) + 1)) / model.get("rows")}%)`;
  };
  const pick = (...places) => {
    const sides = [model.get("rows"), model.get("columns")];
    model.set("picked", places.map((v, i) => Math.max(0, Math.min(sides[i % 2] - 1, Math.floor(v)))));
    model.save_changes();
  };
  const at = (event) => {
    const place = img.getBoundingClientRect();
    return [((event.clientY - place.top) / place.height) * model.get("rows"),
            ((event.clientX - place.left) / place.width) * model.get("columns")];
  };
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  const how = boxed ? " Click a pixel or drag a box; arrow keys move its second corner."
                    : " Click a pixel, or move the mark with the arrow keys.";
  box.setAttribute("aria-label", model.get("alt") + how);
  img.style.cursor = "crosshair";
  img.style.touchAction = boxed ? "none" : "auto";
  img.draggable = false;
  let from = null;
  img.addEventListener("pointerdown", (event) => {
    if (!boxed) return;
    from = at(event);
    img.setPointerCapture(event.pointerId);
  });
  img.addEventListener("pointermove", (event) => from && pick(...from, ...at(event)));
  img.addEventListener("pointerup", (event) => {
    if (from) pick(...from, ...at(event));
    from = null;
  });
  img.addEventListener("lostpointercapture", () => { from = null; });
  img.addEventListener("click", (event) => {
    if (!boxed) pick(...at(event));
    box.focus();
  });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const picked = model.get("picked");
    const step = event.shiftKey ? 10 : 1;
    pick(...picked.slice(0, -2), ...picked.slice(-2).map((v, i) => v + step * move[i]));
  });
  model.on("change:picked", mark);
  mark();
}
export default { render };
"""
)


class PixelPicker(anywidget.AnyWidget):
    """A picture with a mark that mouse and arrow keys move; `picked` is (row, column) of the marked pixel, or, for a picture
    to drag a box in, (row, column, row, column) of its two corners, which are one pixel after a click.

    All that it shows is there from the start: a page that needs more than two seconds to load the script of a widget hears
    nothing more from Python about it.
    """

    _esm = _ESM
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    css_width = traitlets.Int(pictures.MIN_WIDTH).tag(sync=True)
    rows = traitlets.Int(1).tag(sync=True)
    columns = traitlets.Int(1).tag(sync=True)
    picked = traitlets.List(traitlets.Int(), default_value=[0, 0]).tag(sync=True)


def pixel_picker(image: Any, alt: str, *picked: int) -> PixelPicker:
    """Return a picture to choose a pixel from, or a box.

    Args:
        image: anything `pictures.to_array` takes.
        picked: row and column of the pixel that is marked at first, and once more of the other corner for a box.
    """
    array = pictures.to_array(image)
    rows, columns = array.shape[:2]
    look = dict(png=pictures.png_bytes(array), css_width=pictures.shown_width(columns), rows=rows, columns=columns)
    return PixelPicker(alt=pictures.need_alt(alt), picked=list(picked), **look)


class LivePicture(ipywidgets.HTML):
    """A picture that is replaced, always at the same width; it needs no script of its own, see `PixelPicker`.

    Args:
        image: anything `pictures.to_array` takes.
        alt: what it shows.
        room: CSS pixels that it may take.
    """

    def __init__(self, image: Any, alt: str, room: int = pictures.NOTEBOOK_WIDTH):
        super().__init__()
        width, least = pictures.to_array(image).shape[1], min(room, pictures.MIN_WIDTH)
        self.alt, self.css_width = pictures.need_alt(alt), pictures.shown_width(width, room, least)
        self.show_image(image)

    def show_image(self, image: Any) -> None:
        """Show another picture in its place."""
        self.value = pictures.img_tag(pictures.to_array(image), self.alt, self.css_width)
