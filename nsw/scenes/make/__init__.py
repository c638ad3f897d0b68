"""Generators of the bundled scenes, path-traced with Mitsuba 3 (extra `synth`).

>>> from nsw.scenes.make import make_scene
>>> make_scene("toybox", "my_toybox", size=800)  # doctest: +SKIP
"""

from nsw.scenes.make.making import SCENES, make_scene

__all__ = ["SCENES", "make_scene"]
