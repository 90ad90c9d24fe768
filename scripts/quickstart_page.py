"""Write `index.html` of a quickstart: `python scripts/quickstart_page.py FOLDER`; pictures, curves, table, next commands.

FOLDER holds what `scripts/quickstart.sh` has made: `pictures/`, `run/`, `test/metrics.json`. The page names its pictures by
relative paths, so the folder can be moved as a whole.
"""

from __future__ import annotations

import argparse
import html
import json
import shlex
from pathlib import Path

COLUMNS = ("AP", "AP50", "AP70", "AP75")

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>jrdp quickstart</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 12px }}
.pictures img {{ width: 100%; height: 100%; max-height: 420px; object-fit: contain; background: #f1f3f5; border-radius: 6px }}
table {{ border-collapse: collapse }} td, th {{ padding: .3em 1em; text-align: right; border-bottom: 1px solid #d9dee3 }}
th:first-child {{ text-align: left }} pre {{ background: #f1f3f5; padding: 1em; overflow-x: auto; border-radius: 6px }}
.curves {{ max-width: 100% }}
</style></head><body>
<h1>It works</h1>
<p>A network was trained here on {trained}, tested on pictures that it had not seen, and asked for the instances on some of them.
Every outline is an object that it found; the number is how sure it is.</p>
<div class="pictures">{pictures}</div>
<h2>How good it is</h2>
<p>Average precision in percent on the {tested} held-out pictures: how well boxes and masks fit (AP50: an overlap of half counts).</p>
<table><tr><th></th>{heads}</tr>{rows}</table>
<h2>How it learned</h2>
<p><img class="curves" src="run/curves.png" alt="losses and learning rate over the iterations"></p>
<h2>What next</h2>
<pre>{commands}</pre>
</body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", default="jrdp", help="what the page calls jrdp")
    chosen = parser.parse_args()
    page = chosen.folder / "index.html"
    page.write_text(render(chosen.folder, chosen.command), encoding="utf-8")
    print(page)


def render(folder: Path, command: str) -> str:
    metrics = json.loads((folder / "test" / "metrics.json").read_text(encoding="utf-8"))
    log = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    pictures = sorted(p for p in (folder / "pictures").glob("*.png") if not p.stem.endswith("_instances"))
    tested = len(json.loads((folder / "sample" / "val.json").read_text(encoding="utf-8"))["images"])
    kinds = (("bbox", "boxes"), ("segm", "masks"))
    rows = "".join(
        f"<tr><th>{name}</th>" + "".join(f"<td>{100 * metrics[kind][column]:.1f}</td>" for column in COLUMNS) + "</tr>"
        for kind, name in kinds
    )
    weights = shlex.quote(str(folder.resolve() / "run" / "final.safetensors"))
    commands = [
        "# on pictures of your own; it knows what it has seen: after the generated pictures, bright and simple objects",
        f"{command} predict --weights {weights} --out out PHOTO_OR_FOLDER",
        "# on real photographs: the authors' weights",
        f"{command} weights r50_isod",
        "# a training on photographs of your own, from ImageNet weights (95 MB, npm); in the clone",
        "bash scripts/quickstart.sh --photos IMAGES MASKS",
    ]
    return PAGE.format(
        trained=html.escape(f"{json.loads(log[-1])['iteration']} batches of pictures"),
        tested=tested,
        pictures="".join(
            f'<a href="pictures/{html.escape(p.name)}"><img src="pictures/{html.escape(p.name)}" alt="{html.escape(p.stem)}"></a>'
            for p in pictures
        ),
        heads="".join(f"<th>{column}</th>" for column in COLUMNS),
        rows=rows,
        commands=html.escape("\n".join(commands)),
    )


if __name__ == "__main__":
    main()
