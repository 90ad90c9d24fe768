"""`jrdp --version` and tab completion."""

import pytest
from typer.testing import CliRunner

import jrdp
from jrdp.cli import app


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output == f"jrdp {jrdp.__version__}\n"


def test_completion_is_offered():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize("words, offered", [
    ("jrdp da", ["data"]), ("jrdp predict --thr", ["--threshold"]), ("jrdp train --device c", ["cpu", "cuda"]),
    ("jrdp weights r50_s", ["r50_soc"]), ("jrdp test --weights r50_i", ["r50_isod"]), ("jrdp test --weights runs/", []),
])
def test_completion_gives_what_can_follow(words, offered):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_JRDP_COMPLETE": "complete_bash"}
    assert CliRunner().invoke(app, [], prog_name="jrdp", env=asked).output.split() == offered
