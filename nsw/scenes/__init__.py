"""Scenes: posed pictures and their readers. `nsw.scenes.load(name_or_path)` gives one `Scene`."""

from nsw.scenes.scene import Points, Scene

__all__ = ["Points", "Scene", "load"]


def __getattr__(name: str):
    if name == "load":
        from nsw.scenes.load import load

        return load
    raise AttributeError(f"module 'nsw.scenes' has no attribute '{name}'")
