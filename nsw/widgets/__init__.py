"""The notebook side: pictures, sliders, the viewer, cards and checks. Everything loads on first use.

Only this package imports ipywidgets, anywidget, plotly, jupyter_rfb and viser, and only inside functions or in modules
that are imported on use, so that a headless run pays for nothing it does not show.
"""

from __future__ import annotations

import importlib

_HOME = {
    "live": "frontend",
    "show": "pictures",
    "images": "pictures",
    "titled": "pictures",
    "heat": "heatmaps",
    "heats": "heat_row",
    "lines": "charts",
    "lines_figure": "charts",
    "bars": "charts",
    "bubbles": "charts",
    "figure": "charts",
    "sliders": "slider_panel",
    "weight_sliders": "weight_bank",
    "film": "film_player",
    "gauged": "gauges",
    "gauged_rows": "gauges",
    "palette_panel": "palette_strip",
    "viewer": "inline_viewer",
    "compare": "comparison",
    "compare_runs": "run_comparison",
    "trained_models": "run_comparison",
    "form": "parameter_form",
    "source": "source_card",
    "edit": "editing",
    "edited": "editing",
    "restore": "editing",
    "training_panel": "training",
    "check": "exercises",
    "claim_table": "tables",
    "budget": "tables",
    "table": "tables",
    "ray_inspector": "inspector",
    "viser_view": "viser_server",
    "serve": "viser_server",
    "assembly": "assembly_bench",
    "method_map": "methods_map",
    "camera_figure": "camera_chart",
    "pull_figure": "pull_chart",
    "mesh_figure": "mesh_chart",
    "error_meshes": "error_mesh_chart",
    "matrix": "matrix_panel",
    "staged": "stage_chart",
    "pictured": "pictured_curves",
    "stack_figure": "stack_chart",
    "budget_slider": "budget_curves",
    "cost_slider": "cost_curves",
    "fusion_sliders": "fusion_panel",
    "disc_ray_figure": "disc_ray",
    "group_figure": "group_chart",
    "refit_dial": "refit_panel",
    "thermostat_figure": "thermostat_chart",
    "size_figure": "size_chart",
    "product_figure": "product_cloud",
    "rank_dial": "rank_panel",
    "cells_figure": "cells_chart",
    "microscope": "entry_microscope",
    "clip_figure": "clip_chart",
    "fog_figure": "clip_chart",
    "slab_chart": "ray_series",
    "teacher_chart": "ray_series",
    "ray_chart": "ray_series",
    "show_prior": "city_charts",
    "needle_figure": "city_charts",
    "alignment_figure": "city_charts",
    "atlas": "city_charts",
    "show_importance": "city_charts",
    "cost_table": "city_charts",
    "pressed_pair": "city_charts",
    "show_growth": "city_charts",
    "lens_figure": "blur_charts",
    "cloud_figure": "blur_charts",
    "codes_figure": "code_chart",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"nsw.widgets.{_HOME[name]}"), name)
    raise AttributeError(f"module 'nsw.widgets' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
