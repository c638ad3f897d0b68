"""Tables of NeRDF's notebook: what models answer, how fast and how well, and how near students come to teacher and truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from nsw import metrics
from nsw.methods.nerdf_fit import depth_error, n_parameters
from nsw.renderers.render import Render


def speed_rows(
    models: Mapping[str, nn.Module], shots: Mapping[str, Render], took: Mapping[str, float], truth: Float[Tensor, "n H W 3"]
) -> list[dict]:
    """Return one row a model: PSNR to truth and to the teacher's pictures, time, questions, speed beside NeRDF's, and size.

    Args:
        models: name -> model; "NeRDF" and "teacher" among them. "NeRF" asks its network at each of its samples.
        shots: name -> its pictures of the held-out views.
        took: name -> seconds a picture.
        truth: photographs of those views.
    """
    questions = {"NeRF": models["NeRF"].settings.n_samples} if "NeRF" in models else {}
    questions["teacher"] = "as many as are visible"
    return [
        {
            "": name,
            "PSNR to truth": metrics.psnr(shots[name].rgb, truth),
            "to teacher": metrics.psnr(shots[name].rgb, shots["teacher"].rgb),
            "ms a picture": 1000 * took[name],
            "questions a pixel": questions.get(name, 1),
            "NeRDF is faster": f"{took[name] / took['NeRDF']:.1f} x",
            "parameters": n_parameters(model),
        }
        for name, model in models.items()
    ]


class Score(NamedTuple):
    """How near pictures come: PSNR in dB to the photographs and to the teacher's pictures, and error of depth in world units."""

    to_truth: float
    to_teacher: float
    depth_error: float


def scores(shots: Mapping[str, Render], truth: Float[Tensor, "n H W 3"], depth: Float[Tensor, "n H W"]) -> dict[str, Score]:
    """Return the score of each one's pictures of the held-out views; "teacher" is among them.

    Args:
        truth: photographs.
        depth: what depth is measured against, 0 where it is not known.
    """
    lesson = shots["teacher"].rgb
    return {
        name: Score(metrics.psnr(shot.rgb, truth), metrics.psnr(shot.rgb, lesson), depth_error(shot.depth, depth))
        for name, shot in shots.items()
    }


def student_rows(found: Mapping[str, Score], beside: str = "") -> list[dict]:
    """Return one row a student, that is all but "teacher" and "NeRF": PSNR to the teacher, to the truth, and error of depth.

    Args:
        beside: what is written behind "depth error".

    >>> student_rows({"NeRF": Score(9.0, 9.0, 1.0), "a": Score(30.0, 31.0, 0.1)})
    [{'': 'a', 'PSNR to teacher': 31.0, 'to truth': 30.0, 'depth error': 0.1}]
    """
    return [
        {"": name, "PSNR to teacher": it.to_teacher, "to truth": it.to_truth, f"depth error{beside}": it.depth_error}
        for name, it in found.items()
        if name not in ("teacher", "NeRF")
    ]


def winner_rows(
    wins: Bool[Tensor, "n H W"],
    kinds: Mapping[str, Bool[Tensor, "n H W"]],
    rgbs: Mapping[str, Float[Tensor, "n H W 3"]],
    truth: Float[Tensor, "n H W 3"],
) -> list[dict]:
    """Return one row a kind of pixel: its share of all, how often the first of two pictures wins there, and both PSNRs.

    Args:
        wins: where the first is nearer to the truth.
        kinds: name -> mask; see `nerdf_inspect.kinds_of_pixels`.
        rgbs: name -> pictures.
    """
    share = lambda mask: f"{float(mask.float().mean()):.0%}"  # noqa: E731
    return [
        {"": kind, "share of pixels": share(mask), f"{next(iter(rgbs))} nearer": share(wins[mask])}
        | {f"{name}, dB": metrics.psnr(rgb, truth, mask) for name, rgb in rgbs.items()}
        for kind, mask in kinds.items()
    ]


def bubbles_of(rows: list[dict]) -> dict[str, tuple[float, float, int]]:
    """Return pictures a second, PSNR to truth and number of parameters of each row of `speed_rows`, for `widgets.bubbles`.

    >>> bubbles_of([{"": "a", "PSNR to truth": 30.0, "ms a picture": 20.0, "parameters": 7}])
    {'a': (50.0, 30.0, 7)}
    """
    return {row[""]: (1000 / row["ms a picture"], row["PSNR to truth"], row["parameters"]) for row in rows}
