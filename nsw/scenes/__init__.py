"""Scenes: posed pictures and their readers. `nsw.scenes.load(name_or_path)` gives one `Scene`."""

from nsw.scenes.scene import Points, Scene

__all__ = ["Points", "Scene", "data_dir", "load", "names"]


def __getattr__(name: str):
    if name == "load":  # in a module of another name, because importing nsw.scenes.load would hide the function
        from nsw.scenes.loading import load

        return load
    if name in ("data_dir", "names"):
        from nsw.scenes import bundled

        return getattr(bundled, name)
    raise AttributeError(f"module 'nsw.scenes' has no attribute '{name}'")
