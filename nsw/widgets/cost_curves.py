"""What a choice costs and brings: the picture that it gives beside the curves of all choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def cost_slider(picture: Callable[[Any], Any], costs: Mapping[float, Mapping[str, float]], name: str, y: str, alt: str) -> None:
    """Show the picture of a chosen number beside curves over all numbers; a dot marks the choice on the first curve.

    Args:
        picture: number -> anything `pictures.to_array` takes.
        costs: number -> {curve: value}, the same curves for all, numbers in order; the first is what the choice is made for.
        name: of the control and of the horizontal axis.
        y: of the vertical axis.
        alt: what is shown.
    """
    from nsw.widgets.pictured_curves import pictured
    from nsw.widgets.slider_panel import sliders

    curves = {key: (list(costs), [cost[key] for cost in costs.values()]) for key in next(iter(costs.values()))}
    first = next(iter(curves))

    def chosen(**choice: float):
        number = choice[name]
        told = ", ".join(f"{key} {value:.2f}" for key, value in costs[number].items())
        return pictured(picture(number), curves, name, y, f"{name} {number}: {told}", here=(number, costs[number][first]))

    sliders(chosen, alt=alt, **{name: list(costs)})
