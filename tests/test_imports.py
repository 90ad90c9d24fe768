"""Which file imports which: never in a circle, and PyTorch from its place alone."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jrdp"
TORCH_IS_AT_HOME = ("comparison",)  # the comparison tool, an optional extra


def imports_of(package: Path) -> dict[str, set[str]]:
    """{module: modules that its code names in imports, wherever they stand, those for type checkers alone left out}."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(_imported(path, name, files)) - {name} for name, path in files.items()}


def _imported(path: Path, name: str, files: dict):
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield inner if inner in files else home


def circle_of(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, empty where there is none."""
    try:
        TopologicalSorter({name: found & set(imports) for name, found in imports.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_file_imports_what_imports_it():
    imports = imports_of(PACKAGE)
    assert "jrdp.models.fcos_decode" in imports["jrdp.models.rdpnet"] and len(imports) > 100
    assert circle_of(imports) == []


@pytest.mark.parametrize("last", ["from pack.a import one", "from .a import one", "def f():\n    import pack.a", "from pack import a"])
def test_a_circle_is_found(tmp_path, last):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from pack import b\none = 1\n")
    (package / "b.py").write_text("from pack.c import two\n")
    (package / "c.py").write_text(f"two = 2\n{last}\n")
    assert set(circle_of(imports_of(package))) == {"pack.a", "pack.b", "pack.c"}


def test_torch_is_named_by_the_comparison_alone():
    for name, found in imports_of(PACKAGE).items():
        if not name.split(".")[1:2] or name.split(".")[1] not in TORCH_IS_AT_HOME:
            assert not [module for module in found if module.split(".")[0] in ("torch", "torchvision")], name


# What a process imports that starts again and again, or beside a network; each of these takes tenths of a second.
@pytest.mark.parametrize(
    "module, without",
    [
        ("jrdp.engine.predict_jobs", ("jittor", "matplotlib")),
        ("jrdp.engine.predict", ("jittor", "matplotlib")),
        ("jrdp.masks", ("jittor", "cv2")),
        ("jrdp.engine.evaluate_jobs", ("jittor",)),
        ("jrdp.cli", ("jittor", "matplotlib", "cv2")),
    ],
)
def test_what_is_imported_late(module, without):
    script = f"import sys, {module}; print([name for name in {without} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
