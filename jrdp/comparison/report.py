"""`report.html` (one self-contained file) and `report.json` of a comparison."""

from __future__ import annotations

import base64
import html
import io
import json
import platform
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from PIL import Image

from jrdp.files import check_target, make_folder, refuse_others, write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .7rem; text-align: right; border-bottom: 1px solid #dfe5ea; }
th:first-child, td:first-child { text-align: left; } thead th { position: sticky; top: 0; background: #f3f6f8; }
tr.bad td { background: #fde8e6; } .scroll { max-height: 34rem; overflow: auto; }
.verdict { padding: .7rem 1rem; border-left: .4rem solid; } .passed { background: #e9f6ec; border-color: #2e8b57; }
.failed { background: #fde8e6; border-color: #c0392b; } img { max-width: 100%; } figure { margin: 1rem 0; }
figcaption { color: #51606e; } .pair { display: flex; gap: .8rem; flex-wrap: wrap; } .pair figure { flex: 1 1 20rem; }
"""


class Report:
    """Collects parts from top to bottom; `failures` decides the verdict that stands first."""

    def __init__(self, title: str):
        self.title = title
        self.failures: list[str] = []
        self._parts: list[str] = []

    @property
    def passed(self) -> bool:
        return not self.failures

    def verdict(self, folder: Path, print_line: Callable[[str], None]) -> bool:
        """Print every failure and where the report lies; true when there is none."""
        for failure in self.failures:
            print_line(f"OVER TOLERANCE  {failure}")
        words = "within tolerance" if self.passed else "over tolerance"
        print_line(f"{words}; report: {folder / 'report.html'}")
        return self.passed

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], bad: Sequence[bool] | None = None) -> None:
        """A table; rows marked `bad` are coloured."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = ""
        for position, row in enumerate(rows):
            mark = ' class="bad"' if bad is not None and bad[position] else ""
            cells = "".join(f"<td>{html.escape(shown(value))}</td>" for value in row)
            body += f"<tr{mark}>{cells}</tr>"
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def plot(self, figure: Any, caption: str) -> None:
        """A matplotlib figure, embedded as PNG."""
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
        self._parts.append(_figure(stream.getvalue(), "png", caption))

    def pictures(self, pictures: Sequence[tuple[str, np.ndarray]]) -> None:
        """RGB uint8 pictures side by side, each with its caption."""
        figures = ""
        for caption, pixels in pictures:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, format="JPEG", quality=88)
            figures += _figure(stream.getvalue(), "jpeg", caption)
        self._parts.append(f'<div class="pair">{figures}</div>')

    def write(self, folder: Path, data: dict) -> None:
        """Write both files; `data` is the content of report.json beside the verdict."""
        verdict = {"title": self.title, "passed": self.passed, "failures": self.failures, "machine": machine()}
        kind = "passed" if self.passed else "failed"
        words = "Within the declared tolerances." if self.passed else "Over tolerance:"
        items = "".join(f"<li>{html.escape(failure)}</li>" for failure in self.failures)
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{html.escape(self.title)}</h1>"
            f'<div class="verdict {kind}">{words}<ul>{items}</ul></div>'
            + "".join(self._parts)
            + f"<p>{html.escape(machine())}</p></body></html>\n"
        )
        make_folder(folder)
        # This one first: it tells a later run that both are of a comparison.
        write_text(folder / "report.json", json.dumps({**verdict, **data}, indent=1, allow_nan=False) + "\n")
        write_text(folder / "report.html", page)


def check_folder(folder: Path) -> None:
    """Raise `UserError` where reports cannot be written to `folder`, or would replace what no comparison has written."""
    refuse_others(folder, "report.json", [b'"title"', b'"passed"', b'"failures"'], "report.html")
    for name in ("report.html", "report.json"):
        check_target(folder / name)


def versions_text(versions: dict[str, str]) -> str:
    """"jittor 1.3.11.0, torch 2.8.0, ..."."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def shown(value: Any) -> str:
    """A cell's text: floats with three significant digits."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.3g}"
    return str(value)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same table for a terminal."""
    cells = [[str(column) for column in columns], *[[shown(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = []
    for row in cells:
        parts = [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def new_figure(width: float = 9.0, height: float = 3.6):
    """A matplotlib figure and its axes, drawn without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def machine() -> str:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{platform.system()} {platform.machine()}, {model}, Python {platform.python_version()}"


def _figure(data: bytes, kind: str, caption: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/{kind};base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
