"""Charts of active learning: the sky of poses, weights along a ray, the pool in a view, curves of levels switched one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.renderers.heat_colours import coloured
from nsw.widgets.charts import COLOURS, DASHES, css, figure
from nsw.widgets.pictures import data_url, enlarged, png_bytes


def pose_sky(upward: Float[Tensor, "C 3"], errors: Float[Tensor, "C"], hard: float, scale: tuple[float, float]):
    """Return poses on the view sphere seen from above, coloured by error, with rings around the hardest.

    The zenith is in the middle, the circle is the horizon; equal areas of the sphere are equal areas of the chart.

    Args:
        upward: from the scene's middle to each camera, any length.
        errors: NaN leaves a pose out.
        hard: share of all poses that are ringed.
        scale: errors of the darkest and of the brightest colour.
    """
    there = errors.isfinite()
    n_hard = min(max(1, round(hard * len(errors))), int(there.sum()))
    ringed = torch.where(there, errors, -math.inf).topk(n_hard).indices
    unit = torch.nn.functional.normalize(upward, dim=1)
    flat = torch.nn.functional.normalize(unit[:, :2], dim=1) * (1 - unit[:, 2:]).clamp_min(0).sqrt()
    shades, ends = (css(coloured(values, *scale)[0] / 255) for values in (errors[None].numpy(), [list(scale)]))
    turn = torch.linspace(0, 2 * math.pi, 73)
    horizon = dict(x=turn.cos().tolist(), y=turn.sin().tolist(), mode="lines", line=dict(color="#999999", width=1.5))
    data = [
        dict(type="scatter", showlegend=False, hoverinfo="skip", **horizon),
        _dots(flat[ringed], "hard", ["#D55E00"] * n_hard, 22),
        _dots(flat[there], "", [c for c, ok in zip(shades, there.tolist(), strict=True) if ok], 14),
        *(_dots(flat[:0], f"error {value:.3f}", [end], 14) for value, end in zip(scale, ends, strict=True)),
    ]
    data[2] |= dict(text=[f"{error:.3f}" for error in errors[there].tolist()], hoverinfo="text", showlegend=False)
    axis = dict(range=[-1.2, 1.2], showgrid=False)
    title = f"{n_hard} of {len(errors)} poses are hard; mean error {float(errors[there].mean()):.3f}"
    axes = dict(xaxis=dict(title="x", **axis), yaxis=dict(title="y", **axis))
    return figure(data, title=title, width=520, height=560, showlegend=True, margin=dict(l=70, r=20, t=80, b=60), **axes)


def _dots(flat: Float[Tensor, "n 2"], name: str, colours: Sequence[str], size: int) -> dict:
    x, y = flat.T.tolist() if len(flat) else ([None], [None])
    colour = colours[0] if len(set(colours)) == 1 else list(colours)
    return dict(type="scatter", x=x, y=y, mode="markers", name=name, marker=dict(size=size, color=colour))


def weight_stems(t: Float[Tensor, "S"], step: float, found: Mapping[str, tuple[Float[Tensor, "S"], Bool[Tensor, "S"]]]):
    """Return a chart of two fields' weights along one ray, those that are kept in full colour.

    Args:
        t: distances along the ray; `step`, between two of them.
        found: {field: (weights, which are kept)}.
    """
    data, union = [], torch.zeros_like(t, dtype=torch.bool)
    for k, ((name, (weights, chosen)), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        union |= chosen
        at = t + (k - 0.5) * 0.4 * step  # both beside the middle of the sample
        look = dict(type="scatter", mode="lines")
        left_out = dict(name="left out", line=dict(color="#bbbbbb", width=4), showlegend=k == 0)
        data.append(look | _stems(at[~chosen], weights[~chosen]) | left_out)
        data.append(look | _stems(at[chosen], weights[chosen]) | dict(name=f"{name}, kept", line=dict(color=colour, width=4)))
    title = f"{int(union.sum())} of {len(union)} samples enter the point terms"
    ends = t[[0, -1]].tolist() if len(t) else [0.0, 1.0]
    across = dict(title="distance along the ray (world units)", range=[ends[0] - step, ends[1] + step])
    axes = dict(xaxis=across, yaxis=dict(title="weight"))
    return figure(data, title=title, showlegend=True, margin=dict(l=70, r=20, t=90, b=60), **axes)


def _stems(x: Float[Tensor, "n"], height: Float[Tensor, "n"]) -> dict[str, list[float | None]]:
    """Return upright lines from 0 to each height as one broken line."""
    return {
        "x": [value for at in x.tolist() for value in (at, at, None)],
        "y": [value for top in height.tolist() for value in (0.0, top, None)],
    }


def marked(picture: Float[Tensor, "H W 3"], places: Int[Tensor, "2 n"], step: int, n_solid: int, n_rays: int):
    """Return a pale picture with pixels (row, column) painted blue, under a line that counts the pool's rays.

    Args:
        step: at which the pool was like this. n_solid: its rays that meet a surface. n_rays: all of them.
    """
    pale = 0.35 + 0.65 * picture.mean(-1, keepdim=True).expand_as(picture)
    pale[tuple(places)] = torch.tensor([0.0, 0.32, 0.7])
    array = enlarged((pale * 255).round().byte().numpy(), 448)
    height, width = array.shape[:2]
    words = f"{n_solid} of {n_rays} rays meet a surface, {places.shape[1]} of them in sight" if n_rays else "the pool is empty"
    image = dict(type="image", source=data_url(png_bytes(array)), hoverinfo="skip")
    hidden = dict(visible=False, showticklabels=False)
    size = dict(width=width + 40, height=height + 60, margin=dict(l=20, r=20, t=40, b=20))
    return figure([image], title=f"After {step} steps: {words}", xaxis=hidden, yaxis=hidden, **size)


def score_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]], picked: Sequence[str], titles: Sequence[str]
):
    """Return curves of some variants in panels side by side; a variant keeps its colour whichever others are shown.

    Args:
        curves: {variant: (steps [E], scores [E][S])}.
        picked: variants to draw.
        titles: S titles, one of each panel.
    """
    data, share = [], 1 / len(titles)
    for i, (name, (steps, scores)) in enumerate(curves.items()):
        for panel in range(len(titles)) if name in picked else ():
            axes = dict(xaxis=f"x{panel + 1}", yaxis=f"y{panel + 1}") if panel else {}
            line = dict(color=COLOURS[i % 8], dash=DASHES[i % 8], width=2.5)
            heights = [row[panel] for row in scores]
            data.append(
                dict(type="scatter", mode="lines", x=list(steps), y=heights, name=name, line=line, showlegend=not panel, **axes)
            )
    chart = figure(data, showlegend=True, height=380, margin=dict(l=70, r=20, t=60, b=60))
    every = [[row[panel] for _, scores in curves.values() for row in scores[1:]] for panel in range(len(titles))]
    for panel, (title, heights) in enumerate(zip(titles, every, strict=True)):
        number, room = str(panel + 1) if panel else "", 0.05 * (max(heights) - min(heights)) + 1e-3
        look = dict(showline=True, linecolor="#444", ticks="outside", gridcolor="#e3e3e3")
        across = dict(domain=[panel * (share + 0.06), panel * (share + 0.06) + share - 0.06], anchor=f"y{number}", title="step")
        up = dict(anchor=f"x{number}", title=title, range=[min(heights) - room, max(heights) + room])
        chart.update_layout({f"xaxis{number}": look | across, f"yaxis{number}": look | up})
    return chart


def switched(curves: Mapping[str, tuple], titles: Sequence[str], over_plain: bool = False, **ticked: bool):
    """Return `score_curves` of "PVD", of what is ticked, and of "all three" where its three levels are.

    Args:
        over_plain: draw what each has more than "PVD" at the same step.
    """
    together = all(ticked.get(level, False) for level in ("pose", "ray", "point"))
    picked = ["PVD", *(name for name, on in ticked.items() if on), *["all three"] * together]
    if over_plain:
        gain = lambda scores: [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(scores, curves["PVD"][1], strict=True)]  # noqa: E731
        curves, titles = (
            {name: (steps, gain(scores)) for name, (steps, scores) in curves.items()},
            [f"{t}, over PVD" for t in titles],
        )
    return score_curves(curves, picked, titles)
