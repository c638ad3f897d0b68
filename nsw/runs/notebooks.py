"""Notebooks as files: where they are, what their parameters are, whether given values fit."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.runs.folders import notebooks_dir
from nsw.runs.settings import check_preset, check_seed

_TYPES = {"int": int, "float": float, "bool": bool, "str": str}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    kind: str
    default: Any
    help: str


def all_notebooks(folder: Path | None = None) -> list[Path]:
    """Return every `NN_slug.ipynb`, in order."""
    return sorted((folder or notebooks_dir()).glob("[0-9][0-9]_*.ipynb"))


def slug_of(path: Path) -> str:
    """Return the name a notebook runs under.

    >>> slug_of(Path("notebooks/02_dvgo.ipynb"))
    'dvgo'
    """
    return re.sub(r"^\d+_", "", path.stem).lower()


def find_notebook(name: str, folder: Path | None = None) -> Path:
    """Return the notebook for a path, a file name or a slug.

    Raises:
        InputError: naming what exists.
    """
    given = Path(name).expanduser()
    if given.suffix == ".ipynb" and given.is_file():
        return given.absolute()
    known = all_notebooks(folder)
    for path in known:
        if name.removesuffix(".ipynb") in (path.stem, slug_of(path), path.stem.partition("_")[0]):
            return path.absolute()
    names = ", ".join(path.stem for path in known) or f"no notebook in {folder or notebooks_dir()}"
    raise InputError(f'There is no notebook "{name}": there is {names}.')


def read_notebook(path: Path) -> Any:
    """Return the notebook as nbformat 4.

    Raises:
        InputError: when it cannot be read.
    """
    import nbformat
    from nbformat.validator import NotebookValidationError

    data = read_json(path, "notebook")
    if not isinstance(data, dict) or not isinstance(data.get("nbformat"), int):
        raise InputError(f"{path} is not a notebook: it has no format number.")
    try:
        notebook = nbformat.reads(json.dumps(data), as_version=4)
    except (ValueError, TypeError, KeyError, AttributeError, NotebookValidationError) as error:
        raise InputError(f"{path} is not a notebook ({str(error).splitlines()[0]}).") from error
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    return notebook


def parameters(notebook: Any) -> dict[str, Parameter]:
    """Return the typed lines of the cell tagged `parameters`; empty without one."""
    from papermill.translators import PythonTranslator

    found = {}
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for item in PythonTranslator.inspect(tagged[0]) if tagged else []:
        try:
            default = ast.literal_eval(item.default)
        except (ValueError, SyntaxError):
            default = item.default
        kind = item.inferred_type_name if item.inferred_type_name in _TYPES else type(default).__name__
        found[item.name] = Parameter(item.name, kind, default, item.help)
    return found


def parse(parameter: Parameter, text: str) -> Any:
    """Return the text of a command line as the parameter's type.

    >>> parse(Parameter("seed", "int", 0, ""), "3")
    3
    """
    if parameter.kind == "bool":
        if text.lower() not in _WORDS:
            raise InputError(f'The parameter {parameter.name} is "{text}": expected true or false.')
        return _WORDS[text.lower()]
    try:
        return _TYPES.get(parameter.kind, str)(text)
    except ValueError:
        kind = {"int": "a whole number", "float": "a number"}[parameter.kind]
        raise InputError(f'The parameter {parameter.name} is "{text}": expected {kind}.') from None


def check_parameters(path: Path, known: Mapping[str, Parameter], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the given values in their types.

    Raises:
        InputError: for a name the notebook does not have, or a value of the wrong type.
    """
    values = {}
    for name, text in given.items():
        if name not in known:
            names = ", ".join(known) or "none"
            raise InputError(f'{path.stem} has no parameter "{name}": it has {names}.')
        values[name] = parse(known[name], text)
    if "preset" in values:
        check_preset(values["preset"])
    if "seed" in values:
        check_seed(values["seed"])
    return values
