"""A constraint that finds its own price, on a problem with a known answer."""

from __future__ import annotations


def thermostat_figure(rho: float, limit: float):
    """Return a chart of `hollownerf_inspect.thermostat_curves`: mean and multiplier over the steps, beside their answers.

    Args:
        rho: how fast the multiplier learns.
        limit: the constraint's C.
    """
    from nsw.methods.hollownerf_inspect import thermostat_curves
    from nsw.widgets.charts import lines_figure

    return lines_figure(thermostat_curves(rho, limit), "step", "m, C and multiplier", "A problem with a known answer")
