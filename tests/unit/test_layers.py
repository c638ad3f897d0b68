"""Dependencies point one way: widgets and runs, then methods, then renderers, models and scenes, then kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "nsw"
HEIGHT = dict(kernels=0, models=1, scenes=1, renderers=1, formats=1, methods=2, runs=3, widgets=3)


def imported(path: Path) -> Iterator[str]:
    """Yield the parts of nsw that a module imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: imports are absolute"
            names = [f"{node.module}.{name}" for name in names]
        yield from (name.split(".")[1] for name in names if name.startswith("nsw."))


@pytest.mark.parametrize("layer", HEIGHT)
def test_no_module_imports_from_a_layer_above_its_own(layer):
    found = {path.relative_to(PACKAGE).as_posix(): set(imported(path)) for path in (PACKAGE / layer).rglob("*.py")}
    upwards = {name: {part for part in parts if HEIGHT.get(part, 0) > HEIGHT[layer]} for name, parts in found.items()}
    assert found and not any(upwards.values()), {name: parts for name, parts in upwards.items() if parts}
