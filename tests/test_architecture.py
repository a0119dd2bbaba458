"""Direction of imports between packages, and imports without side effects."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autodrag

PACKAGE = Path(autodrag.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Foundation modules may import only each other. ALLOWED lists the allowed imports of every package.
FOUNDATIONS = (
    "__init__",
    "acceleration",
    "errors",
    "arguments",
    "config_files",
    "files",
    "constant",
    "points",
    "images",
    "release",
    "checkpoint",
    "edits",
    "memory",
    "parallel",
    "progress",
    "tracking",
)
ALLOWED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FOUNDATIONS, FOUNDATIONS),
    "nets": (*FOUNDATIONS, "nets"),
    "data": (*FOUNDATIONS, "nets", "data"),
    "convert": (*FOUNDATIONS, "nets", "convert"),
    "infer": (*FOUNDATIONS, "nets", "data", "convert", "infer"),
    "train": (*FOUNDATIONS, "nets", "data", "convert", "infer", "train"),
    "eval": (*FOUNDATIONS, "nets", "data", "convert", "train", "infer", "eval"),
    "app": (*FOUNDATIONS, "nets", "data", "convert", "train", "infer", "app"),
}
TOP = ("cli", "commands", "__main__")  # may import everything
# Two exceptions, both imported inside functions: `checkpoint` builds networks, and the package exports the editor.
DEFERRED = {("checkpoint", "nets"), ("__init__", "infer")}


def part(module: Path) -> str:
    """`nets` for autodrag/nets/stylegan2.py, `errors` for autodrag/errors.py."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Parts of autodrag that the code imports, also inside functions, except under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = (node.module or "").split(".")
            if names[0] == "autodrag":
                yield from [names[1]] if len(names) > 1 else ["__init__" for _ in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("autodrag.")]
        else:
            yield from imported(node)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction_of_imports(module: Path) -> None:
    own = part(module)
    if own in TOP:
        return
    for other in imported(ast.parse(module.read_text(encoding="utf-8"))):
        assert other in ALLOWED[own] or (own, other) in DEFERRED, f"{own} imports {other}"


def test_class_names_are_unique() -> None:
    names = [
        node.name
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_utils_modules() -> None:
    assert not [module for module in MODULES if module.stem in ("utils", "util", "helpers", "misc")]


def run(code: str, folder: Path) -> str:
    """Run code in a new interpreter in `folder`, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_and_command_line_import_without_torch(tmp_path: Path) -> None:
    heavy = ("torch", "cv2", "numpy", "pydantic")
    code = f"import sys, autodrag, autodrag.cli; print([name for name in {heavy} if name in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    # Lightning emits warnings about other packages at import, so the packages that import it are skipped here.
    names = [
        ".".join(("autodrag", *module.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for module in MODULES
        if part(module) not in ("train", "eval", "app")
    ]
    code = f"""
import importlib, json, os, random
import numpy, torch
def state():
    return [
        hash(random.getstate()), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist(),
        torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype()), dict(os.environ),
        torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), os.getcwd(),
    ]
import cv2, kornia  # import third-party packages first, so that their side effects are not counted
before = state()
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps(state() == before))
"""
    assert json.loads(run(code, tmp_path))
    assert list(tmp_path.iterdir()) == []
