"""Measure the tests: plant one mistake at a time into a module and see whether its tests notice.

    python scripts/mutate.py                         # every module of TARGETS; takes hours
    python scripts/mutate.py jrdp/boxes.py           # these modules
    python scripts/mutate.py --every 5 jrdp/data     # every fifth mistake, of every module below a folder
    python scripts/mutate.py --show 12 jrdp/boxes.py # what mistake 12 looks like

Prints for each module how many mistakes were noticed, and each that was not. Those that somebody looked at and let be, as they
change nothing that anybody could notice or as a GPU alone runs their lines, stand with the reason in `mutate_excused.txt`; the
share of noticed ones is told of all, and of all but these. A mistake is one changed operator, comparison,
constant, condition, keyword argument or result; what a `raise` says is left alone, and sizes and colours of plots. Every mistake
is tried in a process of its own, forked from one that has imported what all have in common (never Jittor, which does not survive
a fork).
Exit code 1 when fewer than `--at-least` of all (0.9) were noticed, or an excuse has become stale: its line has changed, or the
tests notice the mistake.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
EXCUSED = Path(__file__).with_name("mutate_excused.txt")
TARGETS = {  # module -> its tests
    "jrdp/boxes.py": ["tests/test_boxes.py"],
    "jrdp/masks.py": ["tests/test_pasted_masks.py"],
    "jrdp/png.py": ["tests/test_png.py"],
    "jrdp/schedule.py": ["tests/engine/test_solver.py"],
    "jrdp/import_path.py": ["tests/test_import_path.py", "tests/models/test_own_parts.py"],
    "jrdp/models/fcos_targets.py": ["tests/models/test_fcos_targets.py"],
    "jrdp/models/fcos_decode.py": ["tests/models/test_fcos_decode.py"],
    "jrdp/models/fcos.py": ["tests/models/test_fcos_losses.py", "tests/models/test_fcos_head.py"],
    "jrdp/models/mask_targets.py": ["tests/models/test_mask_targets.py"],
    "jrdp/ops/canvas.py": ["tests/ops/test_canvas.py"],
    "jrdp/ops/compile.py": ["tests/ops/test_kernels.py"],
    "jrdp/ops/decoding.py": ["tests/ops/test_decoding.py"],
    "jrdp/ops/frozen_norm.py": ["tests/ops/test_frozen_norm.py"],
    "jrdp/ops/joining.py": ["tests/ops/test_join.py"],
    "jrdp/ops/many.py": ["tests/ops/test_many.py"],
    "jrdp/ops/normalization.py": ["tests/ops/test_group_norm.py"],
    "jrdp/ops/pasting.py": ["tests/ops/test_paste_masks.py"],
    "jrdp/ops/roi_pooling.py": ["tests/ops/test_roi_align.py"],
    "jrdp/ops/suppression.py": ["tests/ops/test_nms.py"],
    "jrdp/data/augmentation.py": ["tests/data/test_augmentation.py"],
    "jrdp/data/own.py": ["tests/data/test_own_dataset.py"],
    "jrdp/data/rle.py": ["tests/data/test_rle.py", "tests/evaluation/test_result_rle.py", "tests/data/test_coco.py"],
    "jrdp/data/sampler.py": ["tests/data/test_sampler.py"],
    "jrdp/data/shapes.py": ["tests/data/test_shapes.py", "tests/data/test_coco.py"],
    "jrdp/data/transforms.py": ["tests/data/test_transforms.py", "tests/data/test_upright.py", "tests/data/test_augmentation.py"],
    "jrdp/evaluation/cocoeval.py": ["tests/evaluation/test_cocoeval.py", "tests/evaluation/test_coco_metrics.py", "tests/analysis/test_analyze.py"],
    "jrdp/evaluation/coco_metrics.py": ["tests/evaluation/test_coco_metrics.py"],
    "jrdp/evaluation/ground_truth.py": ["tests/evaluation/test_coco_metrics.py"],
    "jrdp/evaluation/results.py": ["tests/evaluation/test_coco_metrics.py"],
    "jrdp/analysis/matching.py": ["tests/analysis/test_matching_by_hand.py", "tests/analysis/test_error_analysis.py"],
    "jrdp/analysis/errors.py": ["tests/analysis/test_matching_by_hand.py", "tests/analysis/test_error_analysis.py"],
    "jrdp/analysis/runs.py": ["tests/analysis/test_analyze.py"],
    "jrdp/analysis/plots.py": ["tests/analysis/test_plots.py"],
    "jrdp/analysis/gallery.py": ["tests/analysis/test_gallery.py"],
    "jrdp/analysis/report.py": ["tests/analysis/test_report.py"],
    "jrdp/analysis/analyze.py": ["tests/analysis/test_report.py"],
    "jrdp/evaluation/curves.py": ["tests/evaluation/test_curves.py", "tests/evaluation/test_plot_names.py"],
    "jrdp/interchange/matching.py": ["tests/interchange/test_matching.py", "tests/interchange/test_imagenet_weights.py"],
    "jrdp/machine/memory.py": ["tests/machine/test_available_memory.py"],
    "jrdp/engine/solver.py": ["tests/engine/test_solver.py", "tests/engine/test_steps.py"],
    "jrdp/engine/loss_scale.py": ["tests/engine/test_steps.py"],
    "jrdp/engine/validation.py": ["tests/engine/test_validation.py", "tests/engine/test_train_from_python.py"],
}
COMMON = "numpy PIL.Image cv2 pycocotools.cocoeval matplotlib.figure pydantic yaml pytest typer tqdm safetensors.numpy".split()
LOOKS = frozenset(  # keyword arguments that say how large and in which colours something is drawn
    "alpha bbox_to_anchor boxprops capprops color colors dpi facecolor fontsize fontweight frameon ha labelcolor layout linestyle "
    "linewidth loc markersize meanprops medianprops patch_artist prop va whiskerprops zorder".split()
)
LOOKS_ALONE = frozenset("new_figure margins tick_params RUN_COLORS VERDICT_COLORS _GREY shade shades".split())  # all it says
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


class Mutant(NamedTuple):
    line: int
    text: str  # of that line, as it was
    change: str
    tree: ast.Module

    @property
    def source(self) -> str:
        return ast.unparse(self.tree)

    @property
    def place(self) -> tuple[str, str]:
        """What an excuse knows it by: a line's number would change with every line above it."""
        return self.text, self.change


class Count(NamedTuple):
    """How many mistakes were planted, and what became of them."""

    planted: int
    noticed: int
    excused: int  # of those not noticed
    stale: int  # excuses that hold no longer

    def __str__(self) -> str:
        rest = f", {self.excused} excused" if self.excused else ""
        return f"{self.noticed} of {self.planted} noticed{rest}"


def mutants_of(path: Path) -> list[Mutant]:
    """Every mistake that can be planted into a module, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    count = sum(1 for _ in _changes(ast.parse(text)))
    found = []
    for number in range(count):
        changed = ast.parse(text)
        changes = _changes(changed)
        for _ in range(number):
            next(changes)
        node, apply = next(changes)
        before = ast.unparse(node)
        after = ast.unparse(apply() or node)
        found.append(Mutant(node.lineno, lines[node.lineno - 1].strip(), f"{_short(before)}  ->  {_short(after)}", changed))
    return sorted(found, key=lambda mutant: mutant.line)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, callable]]:
    """(node, function that plants a mistake there and returns what to show in its place) of every place in `tree`."""
    for parent, field, index, node in _places(tree):
        if isinstance(node, ast.Compare):
            for k, op in enumerate(node.ops):
                yield node, lambda node=node, k=k, op=op: node.ops.__setitem__(k, COMPARISONS[type(op)]())
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
            yield node, lambda node=node: setattr(node, "op", OPERATORS[type(node.op)]())
        elif isinstance(node, ast.BoolOp):
            other = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield node, lambda node=node, other=other: setattr(node, "op", other())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            yield node, lambda place=(parent, field, index), node=node: _put(*place, node.operand)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value + 1 != node.value:
            yield node, lambda node=node: setattr(node, "value", node.value + 1)
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            yield node, lambda node=node: setattr(node, "value", not node.value)
        elif isinstance(node, (ast.Break, ast.Continue)):
            other = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
            yield node, lambda place=(parent, field, index), other=other: _put(*place, other)
        elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            yield node, lambda node=node: setattr(node, "value", ast.Constant(None))
        elif isinstance(node, ast.Call):
            for k, keyword in enumerate(node.keywords):
                if keyword.arg is not None and keyword.arg not in LOOKS:
                    yield node, lambda node=node, k=k: node.keywords.pop(k) and None
        if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            yield node.test, lambda node=node: _put(node, "test", None, ast.UnaryOp(ast.Not(), node.test))


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index, node) of all nodes but annotations, decorators, docstrings, messages and type checks."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if field == "args" and isinstance(child, ast.UnaryOp) and ast.unparse(child) == "-1" and ast.unparse(node.func).endswith("reshape"):
                continue  # any negative number means the same there
            if _is_looks(child):
                continue
            yield node, field, index, child
            yield from _places(child)


def _is_looks(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg in LOOKS
    said = node.func if isinstance(node, ast.Call) else node.targets[0] if isinstance(node, ast.Assign) else None
    return getattr(said, "attr", getattr(said, "id", None)) in LOOKS_ALONE


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> ast.AST:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node
    ast.copy_location(node, parent)
    ast.fix_missing_locations(node)
    return node


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:107] + "..."


class _Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name: str, path: Path, source: str):
        self._name, self._path, self._source = name, path, source

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, origin=str(self._path)) if name == self._name else None

    def exec_module(self, module) -> None:
        module.__file__ = str(self._path)
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


def run_tests(path: Path, source: str, tests: list[str], limit: float) -> tuple[bool, float]:
    """Whether the tests pass with `source` in place of the module, and the seconds; over `limit` they do not."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        sys.meta_path.insert(0, _Planted(name, path, source))
        import pytest

        code = 1
        try:
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-m", "not gpu", *tests])
        finally:
            os._exit(int(code))
    while time.monotonic() - started < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0, time.monotonic() - started
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False, time.monotonic() - started


def read_excuses(path: Path) -> dict[str, dict[tuple[str, str], str]]:
    """{module: {(text of a line, change): reason}} of a file in which each is indented by four more than the one before it."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    above = ["", "", ""]
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        depth = (len(line) - len(line.lstrip())) // 4
        if not text or line.startswith("#"):
            continue
        if depth < 3:
            above[depth] = text
        else:
            module, *place = above
            found.setdefault(module, {})[tuple(place)] = text
    return found


def without_place(excuses: dict[tuple[str, str], str], mutants: list[Mutant]) -> list[str]:
    """What to say of the excuses that no mistake of a module has: its line has changed since."""
    places = {mutant.place for mutant in mutants}
    return [f"no such mistake any more: {text}  [{change}]" for text, change in excuses if (text, change) not in places]


def measure(path: Path, tests: list[str], every: int, excuses: dict[tuple[str, str], str]) -> Count:
    """Plants the mistakes of one module; prints those that were not noticed, and the excuses that hold no longer."""
    passed, seconds = run_tests(path, path.read_text(encoding="utf-8"), tests, 600)
    if not passed:
        sys.exit(f"mutate.py: the tests of {path.relative_to(ROOT)} fail without any mistake: {' '.join(tests)}")
    module = path.relative_to(ROOT)
    mutants = mutants_of(path)
    stale = without_place(excuses, mutants)
    chosen = list(enumerate(mutants))[:: every]
    missed = []
    for number, mutant in chosen:
        survived, _ = run_tests(path, mutant.source, tests, 10 + 5 * seconds)
        if survived:
            missed.append(mutant.place)
            why = f"  (excused: {excuses[mutant.place]})" if mutant.place in excuses else ""
            print(f"  {module}:{mutant.line} [{number}]  {mutant.change}{why}", flush=True)
    noticed = {mutant.place for _, mutant in chosen}.difference(missed)
    stale += [f"the tests notice it: {text}  [{change}]" for text, change in excuses if (text, change) in noticed]
    for sentence in stale:
        print(f"  {EXCUSED.name}, {module}: {sentence}", flush=True)
    excused = sum(place in excuses for place in missed)
    count = Count(len(chosen), len(chosen) - len(missed), excused, len(stale))
    print(f"{module}: {count}", flush=True)
    return count


def chosen(names: list[str]) -> dict[Path, list[str]]:
    wanted = [str((Path.cwd() / name).resolve().relative_to(ROOT)) for name in names]
    found = {
        ROOT / module: tests
        for module, tests in TARGETS.items()
        if not wanted or any(module == name or module.startswith(f"{name}/") for name in wanted)
    }
    if not found:
        sys.exit(f"mutate.py: none of {', '.join(names)} is in its table of modules and tests")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="files or folders; default: all of the table")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="plant every N-th mistake only")
    parser.add_argument("--at-least", type=float, default=0.9, help="the share that has to be noticed")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print the module with this mistake")
    options = parser.parse_args()
    targets = chosen(options.modules)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if options.show is not None:
        print(mutants_of(next(iter(targets)))[options.show].source)
        return
    for name in COMMON:
        importlib.import_module(name)
    excuses = read_excuses(EXCUSED)
    counts = [
        measure(path, tests, options.every, excuses.get(str(path.relative_to(ROOT)), {})) for path, tests in targets.items()
    ]
    count = Count(*(sum(column) for column in zip(*counts)))
    share, of_the_rest = (count.noticed / max(number, 1) for number in (count.planted, count.planted - count.excused))
    print(f"all: {count}; {share:.1%} of all, {of_the_rest:.1%} of those not excused")
    sys.exit(count.noticed < options.at_least * count.planted or count.stale > 0)


if __name__ == "__main__":
    main()
