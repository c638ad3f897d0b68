"""Swap a function of the package for the learner's version, for every caller, until it is restored."""

from __future__ import annotations

import html
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nsw.errors import InputError
from nsw.widgets.frontend import emit, shell

MAGIC = "nsw_edit"


@dataclass
class _Edit:
    original: Callable
    current: Callable


_edits: dict[str, _Edit] = {}


def target_of(function: Callable) -> str:
    """Return "module:qualified.name" of a function of the package.

    Raises:
        InputError: for anything that is not a plain function or method of nsw.
    """
    plain = getattr(function, "__func__", function)
    module, name = getattr(plain, "__module__", "") or "", getattr(plain, "__qualname__", "")
    known = isinstance(plain, types.FunctionType) and (module == "nsw" or module.startswith("nsw."))
    if not known or "<" in name:
        raise InputError(
            f"edit() takes a function of nsw written in Python, not {function!r}; your own functions you edit in their cell."
        )
    return f"{module}:{name}"


def edit(function: Callable) -> None:
    """Put a function's source into a new cell below; running that cell swaps it for all callers.

    Names in it are looked up in its own module, as in the original. `restore()` undoes every edit.
    """
    target = target_of(function)
    running = shell()
    if running is None:
        raise InputError("edit() works inside a notebook: it writes a new cell below the running one.")
    register_magic(running)
    body = textwrap.dedent(inspect.getsource(getattr(function, "__func__", function))).rstrip()
    running.set_next_input(f"%%{MAGIC} {target}\n{body}\n", replace=False)
    text = f"The cell below holds {target.partition(':')[2]}. Change it and run it: every caller then uses your version."
    emit({"text/html": f'<p role="status">{html.escape(text)}</p>', "text/plain": text})


def register_magic(running: Any) -> None:
    """Make `%%nsw_edit` known to a shell."""
    running.register_magic_function(lambda line, cell: swap(line.strip(), cell), "cell", MAGIC)


def swap(target: str, code: str) -> None:
    """Compile `code`, which defines the function named by `target`, and put it in the function's place everywhere.

    Raises:
        InputError: for an unknown target, or code that does not define that function.
    """
    module_name, _, qualified = target.partition(":")
    module = sys.modules.get(module_name)
    if not (module_name == "nsw" or module_name.startswith("nsw.")) or module is None or not qualified:
        raise InputError(
            f'%%{MAGIC} {target}: expected "nsw.module:function" of a loaded module; nsw.widgets.edit(function) writes it.'
        )
    owner, name = _owner(module, qualified)
    present = inspect.getattr_static(owner, name, None)
    wrapper = type(present) if isinstance(present, staticmethod | classmethod) else None
    present = present.__func__ if wrapper else present
    if not isinstance(present, types.FunctionType):
        raise InputError(f"%%{MAGIC} {target}: {module_name} has no such function.")
    label = f"<edited {target}>"
    # Annotations stay unevaluated, as in the package, where every module starts with the future import.
    flags = __import__("__future__").annotations.compiler_flag
    linecache.cache[label] = (len(code), None, code.splitlines(keepends=True), label)
    made: dict[str, Any] = {}
    exec(compile(code, label, "exec", flags=flags, dont_inherit=True), module.__dict__, made)
    made_function = made.get(name)
    made_function = getattr(made_function, "__func__", made_function)
    if not callable(made_function):
        raise InputError(f"The edited cell must define {name}: keep its `def {name}(...)` line.")
    made_function.__module__, made_function.__qualname__ = module_name, qualified
    original = _edits[target].original if target in _edits else present
    _replace(owner, name, present, made_function, wrapper)
    _edits[target] = _Edit(original, made_function)
    _banner()


def _owner(module: types.ModuleType, qualified: str) -> tuple[Any, str]:
    """Return the module or class that holds the function, and its name there."""
    *path, name = qualified.split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part, None)
        if owner is None:
            raise InputError(f"{module.__name__} has no {qualified}.")
    return owner, name


def _replace(owner: Any, name: str, old: Callable, new: Callable, wrapper: type | None) -> None:
    """Put `new` where `old` is: in its owner, in every loaded nsw module that imported it, and in the notebook's names."""
    setattr(owner, name, wrapper(new) if wrapper else new)
    for namespace in _namespaces():
        for key, value in list(namespace.items()):
            if value is old:
                namespace[key] = new


def _namespaces() -> Iterator[dict[str, Any]]:
    for name, module in list(sys.modules.items()):
        if (name == "nsw" or name.startswith("nsw.")) and isinstance(module, types.ModuleType):
            yield module.__dict__
    running = shell()
    if running is not None:
        yield running.user_ns


def edited() -> list[str]:
    """Return "module:function" of every function that is swapped at present."""
    return sorted(_edits)


def is_edited(function: Callable) -> bool:
    """Say whether this function, or the original it replaces, is swapped at present."""
    plain = getattr(function, "__func__", function)
    return any(plain in (entry.current, entry.original) for entry in _edits.values())


def restore() -> None:
    """Bring the original of every edited function back."""
    undone = edited()
    for target in undone:
        module_name, _, qualified = target.partition(":")
        owner, name = _owner(sys.modules[module_name], qualified)
        present = inspect.getattr_static(owner, name)
        wrapper = type(present) if isinstance(present, staticmethod | classmethod) else None
        entry = _edits.pop(target)
        _replace(owner, name, entry.current, entry.original, wrapper)
    text = f"Restored: {', '.join(undone)}." if undone else "Nothing is edited."
    emit({"text/html": f'<p role="status">{html.escape(text)}</p>', "text/plain": text})


def _banner() -> None:
    names = ", ".join(edited())
    text = f"Edited: {names}. Every caller uses your version, and claims are not certified, until nsw.widgets.restore()."
    style = "border-left:4px solid #D55E00;padding:0.4em 0.8em;margin:0.3em 0;background:#D55E0022"
    emit({"text/html": f'<p role="status" style="{style}">{html.escape(text)}</p>', "text/plain": text})
