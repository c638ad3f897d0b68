"""Pictures, maps and charts: what is displayed carries alt text, a still, and the right pixels."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from nsw import InputError, widgets
from nsw.renderers import heat_colours
from nsw.renderers.render import Render
from nsw.widgets import charts, frontend, pictures, svg_still


@pytest.fixture
def shown(monkeypatch):
    """Collect what cells display as (bundle, metadata)."""
    out = []

    def display(bundle, metadata=None, raw=False):
        assert raw
        out.append((bundle, metadata))

    monkeypatch.setattr("IPython.display.display", display)
    return out


def png_of(bundle):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))))


def test_import_is_cheap():
    heavy = "{'ipywidgets', 'plotly', 'jupyter_rfb', 'viser', 'anywidget', 'torch'}"
    code = f"import sys, nsw.widgets as w; dir(w); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_package_loads():
    for name in widgets.__all__:
        assert callable(getattr(widgets, name)), name
    with pytest.raises(AttributeError, match="no attribute 'viewr'"):
        _ = widgets.viewr


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(4, 5),
        torch.zeros(4, 5, 1),
        np.zeros((1, 4, 5, 3), np.float64),
        np.zeros((4, 5, 4), np.uint8) + np.uint8([0, 0, 0, 255]),
        Image.new("L", (5, 4)),
        Render(torch.zeros(2, 4, 5, 3), torch.ones(2, 4, 5), torch.ones(2, 4, 5)),
        np.zeros((4, 5), bool),
    ],
    ids=["grey", "one channel", "batch of one", "opaque rgba", "PIL", "Render", "bool"],
)
def test_to_array_takes_what_notebooks_have(image):
    array = pictures.to_array(image)
    assert array.shape == (4, 5, 3) and array.dtype == np.uint8 and not array.any()


@pytest.mark.parametrize("shape", [(3, 4, 5), (4,), (0, 4, 3), (2, 4, 5, 3)])
def test_to_array_names_the_shape_it_cannot_show(shape):
    with pytest.raises(InputError, match="channels last"):
        pictures.to_array(np.zeros(shape))


def test_values_that_are_not_finite_are_magenta_and_transparent_is_white():
    bad = torch.zeros(2, 2, 3)
    bad[0, 1, 2] = float("nan")
    assert pictures.to_array(bad)[0, 1].tolist() == [255, 0, 255]
    assert pictures.to_array(bad)[0, 0].tolist() == [0, 0, 0]
    assert pictures.to_array(np.zeros((2, 2, 4)))[0, 0].tolist() == [255, 255, 255]


def test_show_leaves_alt_text_and_visible_pixels(shown):
    image = torch.rand(10, 20, 3, generator=torch.Generator().manual_seed(0))
    widgets.show(image, alt='noise "quoted"', caption="a < b")
    bundle, metadata = shown[0]
    assert 'alt="noise &quot;quoted&quot;"' in bundle["text/html"] and "a &lt; b" in bundle["text/html"]
    assert bundle["text/plain"] == 'noise "quoted"' and metadata["image/png"]["alt"] == 'noise "quoted"'
    still = png_of(bundle)
    assert still.shape == (160, 320, 3)  # whole-pixel copies up to the least width
    assert np.array_equal(still[::16, ::16], pictures.to_array(image))


def test_figures_without_alt_text_are_refused(shown):
    with pytest.raises(InputError, match="alt text"):
        widgets.show(torch.zeros(2, 2), alt=" ")
    with pytest.raises(InputError, match="alt text"):
        widgets.lines({"a": ([0, 1], [0, 1])}, x="x", y="y", alt="")
    with pytest.raises(InputError, match="no picture"):
        widgets.images({}, alt="nothing")
    assert not shown


def test_images_make_one_sheet_with_titles(shown):
    widgets.images({"truth": torch.zeros(8, 8), "a model with a long name": torch.ones(8, 8)}, alt="two squares", columns=2)
    bundle, _ = shown[0]
    assert bundle["text/html"].count("<img") == 2 and 'alt="truth: two squares"' in bundle["text/html"]
    still = png_of(bundle)
    assert (still[5, 5] == 0).all() and (still[5, -5] == 255).all() and still.shape[1] <= pictures.NOTEBOOK_WIDTH


def test_heat_maps_are_monotone_in_lightness_and_mark_missing_values(shown):
    luma = heat_colours.cividis().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > -1.0).all() and luma[-1] - luma[0] > 150
    values = torch.tensor([[0.0, 1.0], [2.0, float("nan")]])
    assert heat_colours.coloured(values, 0, 2)[1, 1].tolist() == [160, 160, 160]
    widgets.heat(values, alt="a map", unit="dB", title="Error")
    text = shown[0][0]["text/html"]
    assert "2 dB" in text and "1 dB" in text and "0 dB" in text and "Error" in text
    with pytest.raises(InputError, match=r"\[H, W\]"):
        widgets.heat(torch.zeros(2, 3, 4), alt="x")


def test_charts_travel_without_network_and_with_a_still(shown):
    widgets.lines(
        {"ours": ([0, 1, 2], torch.tensor([1.0, 2.0, 4.0])), "base": ([0, 2], [1, 1])}, x="step", y="PSNR (dB)", alt="two curves"
    )
    bundle, _ = shown[0]
    spec = bundle["application/vnd.plotly.v1+json"]
    assert [trace["line"]["color"] for trace in spec["data"]] == list(charts.COLOURS[:2])
    assert spec["data"][0]["line"]["dash"] != spec["data"][1]["line"]["dash"]  # colour is not the only difference
    assert spec["data"][0]["y"] == [1.0, 2.0, 4.0]
    still = bundle["image/svg+xml"]
    assert (
        'aria-label="two curves"' in still
        and "PSNR (dB)" in still
        and "http" not in still.replace("http://www.w3.org/2000/svg", "")
    )
    assert len(str(spec)) < 4000  # plotly's default template alone would be 6 kB


def test_a_curve_of_a_million_points_is_drawn_with_some_of_them(shown):
    values = torch.linspace(-1, 1, 1_000_000)
    widgets.lines({"long": (range(len(values)), values)}, x="splat", y="importance", alt="a line of very many points")
    (curve,) = shown[0][0]["application/vnd.plotly.v1+json"]["data"]
    assert len(curve["x"]) == len(curve["y"]) == charts.MOST
    assert (curve["x"][0], curve["y"][0], curve["x"][-1], curve["y"][-1]) == (0, -1.0, 999_999, 1.0)


def test_svg_still_draws_lines_where_they_are():
    chart = charts.figure([dict(type="scatter", x=[0, 10], y=[0, 1], mode="lines")])
    text = svg_still.svg(chart, "a line")
    path = text.split('<path d="M70.0 ')[1].split('"')[0]  # starts at the left margin
    start_y, end = path.split("L")
    end_x, end_y = end.split()
    assert float(end_x) == 700.0 and float(end_y) < float(start_y)


@pytest.mark.parametrize("title", [None, "a title"])
def test_a_long_legend_stays_inside_the_still_and_above_its_axes(title):
    names = [f"a trace of many words {i}" for i in range(9)]
    data = [dict(type="scatter", mode="markers" if i else "lines", x=[0, 1], y=[0, i], name=name) for i, name in enumerate(names)]
    text = svg_still.svg(widgets.figure(data, width=560, height=400, title=title, showlegend=True), "nine traces")
    top = float(re.search(r'd="M[\d.]+ ([\d.]+)V', text).group(1))
    rows = {name: float(re.search(rf'y="([\d.-]+)">{name}<', text).group(1)) for name in names}
    assert all((34 if title else 10) <= y < top for y in rows.values()) and len(set(rows.values())) > 2
    assert text.count('r="4"') == 8  # points are told by a point, lines by a line


def test_svg_still_of_log_axes_bars_maps_and_3d():
    log = charts.figure([dict(type="scatter", x=[1, 10, 100], y=[1, 0.1, 0.01], mode="lines+markers")])
    log.update_xaxes(type="log").update_yaxes(type="log")
    assert ">100<" in svg_still.svg(log, "log") and ">0.01<" in svg_still.svg(log, "log")
    bars = charts.figure([dict(type="bar", x=["a", "b"], y=[1.0, None], text=["1", ""])])
    assert svg_still.svg(bars, "bars").count("<rect") == 2  # the paper and one bar
    heat = charts.figure([dict(type="heatmap", z=[[0, 1], [2, 3]])])
    assert "<image" in svg_still.svg(heat, "map")
    cloud = charts.figure([dict(type="scatter3d", x=[0, 1], y=[0, 1], z=[0, 1], mode="markers")])
    assert svg_still.svg(cloud, "cloud").count("<circle") == 2
    odd = charts.figure([dict(type="pie", labels=["a"], values=[1])])
    assert "pie trace: see the live figure" in svg_still.svg(odd, "pie")


def test_marks_beyond_a_fixed_range_are_clipped():
    dots = charts.figure([dict(type="scatter", x=[0.5, 0.5], y=[0.5, 9.0], mode="markers")])
    assert svg_still.svg(dots, "all are seen").count("<svg") == 1
    text = svg_still.svg(dots.update_yaxes(range=[0, 1]), "one is far above")
    inner = re.search(r'<svg x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" viewBox="\1 \2 \3 \4"', text)
    top, height = float(inner.group(2)), float(inner.group(4))
    inside = [top <= float(cy) <= top + height for cy in re.findall(r'<circle [^>]*cy="([-\d.]+)"', text[inner.end() :])]
    assert inside == [True, False]


def test_log_axes_of_one_or_two_decades_name_two_and_five_only():
    assert charts.log_axis([0.01, 0.0, 0.4])["dtick"] == "D2"  # zero has no place on the axis
    assert "dtick" not in charts.log_axis([0.2, 0.4]) and "dtick" not in charts.log_axis([1e-5, 1.0])
    assert charts.log_axis([])["type"] == "log"


def test_bubbles_have_areas_as_their_sizes_and_names_apart(monkeypatch):
    from nsw.widgets import charts

    drawn = []
    monkeypatch.setattr(charts, "show_figure", lambda chart, *_: drawn.append(chart))
    points = {"small": (10.0, 20.0, 1.0), "large": (1000.0, 25.0, 4.0), "beside": (1100.0, 25.0, 2.0)}
    charts.bubbles(points, x="speed", y="quality", alt="three bubbles of two sizes", log_x=True, largest=50.0)
    *circles, names = drawn[0].data
    assert [circle.marker.size[0] for circle in circles] == pytest.approx([50.0, 50.0 / 2**0.5, 25.0])
    assert names.text == ("large", "beside", "small") and names.y[0] > 25 > names.y[1] and names.y[2] > 20
    assert drawn[0].layout.xaxis.range[0] < 1 < 3 < drawn[0].layout.xaxis.range[1]


def test_names_of_bars_are_never_numbers(shown):
    widgets.bars({"#734125": 1.0, "#231202": 2.0}, alt="two bars named by their colours")
    assert shown[0][0]["application/vnd.plotly.v1+json"]["layout"]["xaxis"]["type"] == "category"


def test_a_legend_stands_clear_of_the_title():
    """In a browser a row of the legend takes 29 pixels over the axes, a title 20 below its padding."""
    one, two = [dict(type="bar", x=["a"], y=[1.0], name="one")], [dict(type="bar", x=["a"], y=[n], name=f"no {n}") for n in (1, 2)]
    plain, named = charts.figure(one, title="words", showlegend=False), charts.figure(two, title="words", showlegend=True)
    top, title = named.layout.margin.t, named.layout.title
    assert title.text == "words" and (title.y, title.yanchor) == (1, "top") and title.pad.t + 20 + 29 < top
    assert named.layout.height - top == plain.layout.height - plain.layout.margin.t == charts.HEIGHT - 50
    still = svg_still.svg(named, "two bars")
    (word,), (first, second) = (re.findall(rf'y="(\d+)[^>]*>{words}<', still) for words in ("words", r"no \d"))
    assert first == second and int(word) + 30 < int(first) < top


def test_numbers_on_narrow_bars_are_small_and_over_the_next_bar():
    series = (dict(type="bar", x=list(names), y=[0.5] * len(names), text=["0.123"] * len(names)) for names in ("a", "abcdefgh"))
    wide, narrow = (svg_still.svg(charts.figure([one] * 4), "bars") for one in series)
    size = {shown: float(re.search(r'font-size="([\d.]+)">0.123', shown)[1]) for shown in (wide, narrow)}
    assert size[wide] == 12 > size[narrow] >= 8 and narrow.rindex("<rect") < narrow.index("0.123")


@pytest.mark.parametrize("stacked", [False, True])
def test_numbers_on_bars_have_no_exponent(monkeypatch, stacked):
    shown = []
    monkeypatch.setattr(charts, "emit", lambda bundle, *rest, **more: shown.append(bundle["image/svg+xml"]))
    heights = {"a": {"": 1536.2}, "b": {"": 97.56}, "c": {"": 19867.9}}
    charts.bars(heights, alt="a tall bar, a short one, a taller one", stacked=stacked)
    assert all(f">{number}<" in shown[0] for number in ("1536", "97.6", "19,868"))


def test_stacked_bars_stand_on_each_other(monkeypatch):
    shown = []
    monkeypatch.setattr(charts, "emit", lambda bundle, *rest, **more: shown.append(bundle["image/svg+xml"]))
    charts.bars({"a": {"low": 1.0, "high": 3.0}, "b": {"high": 2.0}}, alt="two stacks of two", stacked=True)
    fills = [charts.COLOURS[0], charts.COLOURS[1]]
    marks = [dict(re.findall(r'(\w+)="([^"]+)"', mark)) for mark in re.findall(r"<rect [^>]+>", shown[0])]
    low_a, low_b, high_a, high_b = (
        mark for fill in fills for mark in marks if mark.get("fill") == fill and float(mark["width"]) > 50
    )
    assert low_a["x"] == high_a["x"] and low_a["width"] == high_a["width"]
    assert float(high_a["y"]) + float(high_a["height"]) == pytest.approx(float(low_a["y"]), abs=0.2)
    assert float(high_a["height"]) == pytest.approx(3 * float(low_a["height"]), abs=0.5) and float(low_b["height"]) == 0
    assert float(high_b["height"]) == pytest.approx(2 * float(low_a["height"]), abs=0.5)
    assert ">4<" in shown[0] and ">2<" in shown[0]


def test_live_needs_a_front_end(monkeypatch):
    monkeypatch.setattr(frontend, "_seen_front_end", False)
    kernel = type("Kernel", (), {"get_parent": lambda self: {"metadata": {}}, "_allow_stdin": False})()
    monkeypatch.setattr(frontend, "shell", lambda: type("Shell", (), {"kernel": kernel})())
    assert not widgets.live()  # papermill: no cell id, no input
    kernel.get_parent = lambda: {"metadata": {"cellId": "x"}}
    assert widgets.live()
    kernel.get_parent = lambda: {"metadata": {}}
    assert widgets.live()  # a widget's callback carries no cell id


@pytest.mark.parametrize("width", [60, 150, 1000])
def test_titles_stay_within_their_tile_even_where_a_path_has_no_space(width):
    font, title = ImageFont.load_default(15), "splats of /a/folder/without/one/space and two words"
    lines = pictures.wrapped(title, width, font)
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    assert max(font.getlength(line) for line in lines) <= width
    assert len(lines) == 1 or width < 1000


def test_a_picture_stands_left_of_its_curves_and_is_a_dot_on_them():
    chart = widgets.pictured(np.zeros((4, 8, 3)), {"a": ([1, 2], [3, 4])}, "n", "PSNR (dB)", "two: 4 dB", here=(2, 4))
    assert [trace.type for trace in chart.data] == ["image", "scatter", "scatter"] and chart.layout.title.text == "two: 4 dB"
    assert chart.layout.xaxis2.domain[1] < chart.layout.xaxis.domain[0] and chart.data[2].marker.size > 10
    drawn = svg_still.svg(chart, "a picture and a curve")
    assert "<image" in drawn and "this picture" in drawn and "PSNR (dB)" in drawn


def test_charts_of_single_notebooks_draw_what_they_are_given(monkeypatch):
    from nsw.methods.gaussian_splatting_2d_inspect import RayHits
    from nsw.widgets import slider_panel
    from nsw.widgets.budget_curves import budget_slider
    from nsw.widgets.cost_curves import cost_slider
    from nsw.widgets.disc_ray import disc_ray_figure
    from nsw.widgets.stack_chart import stack_figure

    names = [trace.name for trace in stack_figure(0.9, 4).data]
    assert len(names) == 4 and names[0].startswith("one splat: peak 0.90")
    hits = RayHits(torch.tensor([2.0, 2.1]), torch.tensor([0.6, 0.3]), 0.004)
    chart = disc_ray_figure(hits, 2.05)
    assert chart.layout.title.text.startswith("distortion 0.004") and [trace.name for trace in chart.data] == [
        "discs",
        "true surface",
    ]
    assert len(disc_ray_figure(hits, 0.0).data) == 1
    asked = {}
    monkeypatch.setattr(slider_panel, "sliders", lambda draw, alt, **ranges: asked.update(draw=draw, **ranges))
    picture = np.zeros((4, 4, 3))
    budget_slider({"a": [(100, 20.0, picture), (50, 19.0, picture)], "b": [(100, 21.0, picture)] * 2}, "splats", alt="two pictures")
    assert asked["halvings"] == (0, 1, 0) and asked["draw"](1).shape[2] == 3
    costs = {4: {"mIoU": 0.5, "bytes": 0.3}, 16: {"mIoU": 0.8, "bytes": 0.6}}
    cost_slider(lambda n: picture, costs, "channels", "share of all", alt="a picture beside two curves")
    chart = asked["draw"](channels=16)
    assert asked["channels"] == [4, 16] and chart.layout.title.text == "channels 16: mIoU 0.80, bytes 0.60"
    assert tuple(chart.data[-1].x + chart.data[-1].y) == (16, 0.8)


def test_maps_side_by_side_share_a_scale_and_say_their_means(shown, monkeypatch):
    sheets = {}
    monkeypatch.setattr(pictures, "contact_sheet", lambda tiles, columns: sheets.update(tiles) or next(iter(tiles.values())))
    nothing = torch.full((4, 4), torch.nan)
    widgets.heats(
        {"low": torch.full((4, 4), 2.0), "high": torch.full((4, 4), 8.0), "none": nothing}, alt="two maps and none", unit="m"
    )
    assert list(sheets) == ["low: mean 2 m", "high: mean 8 m", "none"]
    ends = heat_colours.cividis()
    assert (sheets["high: mean 8 m"] == ends[-1]).all() and (sheets["low: mean 2 m"][0, 0] == ends[64]).all()
    assert (sheets["none"] == 160).all() and shown[0][0]["text/plain"] == "two maps and none" and "8 m" in shown[0][0]["text/html"]


def test_sliders_of_a_fusion_answer_with_the_mesh_and_its_error(monkeypatch):
    from nsw import scenes
    from nsw.methods.gaussian_splatting_2d import DepthMaps
    from nsw.scenes.surface import surface_points
    from nsw.widgets import slider_panel
    from nsw.widgets.fusion_panel import fusion_sliders

    scene = scenes.load("toybox", size=32)
    depth = scene.depth[scene.frames("train")].float()
    maps, asked = DepthMaps(depth, depth, depth > 0, scene.views("train"), scene.aabb), {}
    monkeypatch.setattr(slider_panel, "sliders", lambda draw, alt, **ranges: asked.update(draw=draw, **ranges))
    fusion_sliders(maps, surface_points(scene, 0.05), scene.views("test")[0], 0.1, 0.2, alt="a mesh")
    fine, rough = (asked["draw"](voxel, 0.2, 1.0, coarse=True) for voxel in (0.1, 0.4))
    assert fine.shape[1:] == rough.shape[1:] and (fine[:150] != rough[:150]).any()
