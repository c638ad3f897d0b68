"""Renderers: a model and cameras in, a `Render` out."""
