"""The command line: `nsw doctor | run | board | scene | view | export | convert`. Each command loads what it needs and no more."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from nsw.errors import InputError

HELP = """The Neural Scene Workbench.

Examples:
  nsw doctor                          what works on this machine, and how to add the rest
  nsw run 03_gaussian_splatting       train and check one notebook (preset laptop)
  nsw run --all --preset smoke -j 2   every notebook at its smallest, two at a time
  nsw run dvgo -p seed 3              one parameter of the notebook changed
  nsw board                           one table of all claims, and the executed gallery
  nsw scene photos DIR --out SCENE    your own photos as a scene
  nsw view gaussian_splatting         a trained run in a 3D viewer in the browser
  nsw view scan.spz                   a file of splats there: .ply, .splat, .spz or .glb
  nsw export gaussian_splatting mp4   an orbit video of a trained run
  nsw export scan.ply spz             a file of splats in another format
  nsw convert dvgo --to gaussians --out DIR   a trained run as another kind of model
  nsw convert scan.ply --to hash      a file of splats as a field, learned from cameras around it
"""
SCENE_HELP = "Scenes: list them, make them, fetch them, build them from photos."
Preset = Literal["smoke", "laptop", "gpu"]
OptionalPath = Path | None


def doctor(warm: bool = False) -> int:
    """Say what works on this machine, what is missing, and the one command that adds it.

    Args:
        warm: compile the CPU kernels first, so that the first picture need not wait.
    """
    from nsw.runs.doctor import doctor as examine

    return examine(warm)


def run(
    notebooks: Annotated[Positional[tuple[str, ...]], arg(metavar="NOTEBOOK")] = (),
    /,
    preset: Annotated[str | None, arg(metavar="smoke|laptop|gpu")] = None,
    param: Annotated[UseAppendAction[tuple[tuple[str, str], ...]], arg(aliases=["-p"], metavar="NAME VALUE")] = (),
    all: bool = False,  # noqa: A002 - the option is called --all
    jobs: Annotated[int, arg(aliases=["-j"])] = 1,
    seeds: tuple[int, ...] = (),
    record: bool = False,
    timeout: Annotated[float | None, arg(metavar="MINUTES")] = None,
    resume: bool = False,
) -> int:
    """Execute notebooks without a browser; the exit status says whether their claims hold.

    Args:
        notebooks: by slug (dvgo), number (02), file name or path.
        preset: size of the run; by default the notebook's own, laptop.
        param: a parameter of the notebook; may be given several times.
        all: every notebook.
        jobs: how many at a time.
        seeds: one run for each seed.
        record: add time, memory and claims to data/measured.json.
        timeout: minutes a notebook may take; by default 5 (smoke), 45 (laptop) or a day (gpu).
        resume: continue from the checkpoints of a run that was stopped.
    """
    from nsw.runs import headless

    given = {}
    for name, value in param:
        if given.setdefault(name, value) != value:
            raise InputError(f"The parameter {name} is given twice, as {given[name]} and as {value}.")
    planned = headless.plan(notebooks, preset=preset, given=given, every=all, seeds=seeds, timeout=timeout)
    return headless.run(planned, parallel=jobs, resume=resume, save=record)


def board(out: OptionalPath = None, readme: bool = False) -> int:
    """Gather the claims of all runs into one table, and build the executed gallery.

    Args:
        out: folder of the gallery; by default board/ beside runs/.
        readme: write the table and the pictures of README.md anew, from the executed notebooks.
    """
    from nsw.runs import board as boards

    return boards.board(out, readme=readme)


def scene_list() -> int:
    """List the scenes that can be loaded by name."""
    from nsw.runs.scene_commands import list_scenes

    return list_scenes()


def scene_info(scene: Positional[str], /) -> int:
    """Show size, splits, bounds and contents of a scene.

    Args:
        scene: name or folder.
    """
    from nsw.runs.scene_commands import describe_scene

    return describe_scene(scene)


def scene_make(name: Positional[str], /, size: int | None = None, spp: int | None = None, out: OptionalPath = None) -> int:
    """Render a bundled scene anew with Mitsuba, larger if asked (extra synth); a stopped run continues.

    Args:
        name: toybox, tea, shelf, room, town, toybox_defocus or toybox_motion.
        size: width of the pictures in pixels.
        spp: light paths a pixel.
        out: folder; by default, with a size, one beside the bundled scene: notebooks that ask for larger pictures take it.
    """
    from nsw.runs.scene_commands import make_scene

    return make_scene(name, size=size, spp=spp, out=out)


def scene_get(name: Positional[str], /, out: OptionalPath = None) -> int:
    """Download a public data set; its licence is shown first.

    Args:
        name: nerf-synthetic, mip-nerf-360, nerf_llff or tanks-and-temples.
        out: folder; by default nsw's own, where scenes are found by name.
    """
    from nsw.runs.scene_commands import get_scene

    return get_scene(name, out=out)


def scene_photos(photos: Positional[Path], /, out: Path) -> int:
    """Find the cameras of your own photos and write them as a scene (extra sfm), with a report on every photo.

    Args:
        photos: folder of photos.
        out: folder of the scene.
    """
    from nsw.runs.scene_commands import photos_scene

    return photos_scene(photos, out)


def view(
    run: Positional[str],
    /,
    port: int = 0,
    host: str = "127.0.0.1",
    up: Annotated[str | None, arg(metavar="+z|-z|+y|-y|+x|-x")] = None,
) -> int:
    """Open a trained run, or a file of Gaussians, in the 3D viewer, until Ctrl-C.

    Args:
        run: folder or slug of a run, or a .ply, .splat, .spz or .glb.
        port: 0 takes a free one.
        host: address to listen on; 0.0.0.0 lets other machines in.
        up: the direction that is up; by default what the file says, else -y.
    """
    from nsw.runs.kept import view_run

    return view_run(run, port=port, host=host, up=up)


def export(run: Positional[str], what: Positional[str], /, out: OptionalPath = None, frames: int = 90) -> int:
    """Write what a run has learned, or a file of Gaussians, to a file.

    Args:
        run: folder or slug of a run, or a .ply, .splat, .spz or .glb.
        what: ply, spz, glb, splat, points, mp4 or gif.
        out: the file; by default it stands in the run's folder, or beside the file.
        frames: pictures of an orbit.
    """
    from nsw.export import export_file, export_run
    from nsw.runs.kept import find_run, splat_file

    if frames < 2:
        raise InputError(f"--frames is {frames}: an orbit needs at least 2 pictures.")
    file = splat_file(run)
    print(export_run(find_run(run), what, out, frames) if file is None else export_file(file, what, out))
    return 0


def convert(run: Positional[str], /, to: str, out: OptionalPath = None, steps: int = 1500, seed: int = 0) -> int:
    """Turn what a run has learned, or a file of Gaussians, into another kind of model; nsw view opens the folder it writes.

    Args:
        run: folder or slug of a run, or a .ply, .splat, .spz or .glb, which is seen from cameras around it.
        to: hash, vm, dense, mlp or gaussians.
        out: folder of the new model; by default beside the run's own, where 00_start finds it, or beside the file.
        steps: of training; more of them come closer to the original.
        seed: of the random numbers.
    """
    from nsw.runs.convert import convert_run

    print(convert_run(run, to, out, steps, seed))
    return 0


def scene(rest: Positional[tuple[str, ...]] = (), /) -> int:
    """Scenes: list | info | make | get | photos; see nsw scene --help.

    Args:
        rest: the scene command and its arguments.
    """
    return _scenes(list(rest))


def _dispatch(functions: dict[str, Callable[..., int]], prog: str, description: str, args: Sequence[str]) -> int:
    app = tyro.extras.SubcommandApp()
    for name, function in functions.items():
        app.command(function, name=name)
    return app.cli(prog=prog, description=description, args=list(args) or ["--help"], config=(tyro.conf.FlagCreatePairsOff,))


def _scenes(args: Sequence[str]) -> int:
    functions = {"list": scene_list, "info": scene_info, "make": scene_make, "get": scene_get, "photos": scene_photos}
    return _dispatch(functions, "nsw scene", SCENE_HELP, args)


def _commands(args: Sequence[str]) -> int:
    if args[:1] == ["scene"]:
        return _scenes(args[1:])
    functions = dict(doctor=doctor, run=run, board=board, scene=scene, view=view, export=export, convert=convert)
    return _dispatch(functions, "nsw", HELP, args)


def _guard(call: Callable[[], Any]) -> int:
    """Return the exit status of a command; what a person can mend becomes one sentence."""
    try:
        status = call()
        sys.stdout.flush()
        return int(status or 0)
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: say nothing more, also at exit
        return 141
    except KeyboardInterrupt as error:
        print(f"nsw: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}.")


def _fail(sentence: str) -> int:
    print(f"nsw: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):  # a console that has no Greek letters shows question marks instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return _guard(lambda: _commands(args))


if __name__ == "__main__":
    sys.exit(main())
