"""`jrdp --version` and tab completion."""

from typer.testing import CliRunner

import jrdp
from jrdp.cli import app


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output == f"jrdp {jrdp.__version__}\n"


def test_completion_is_offered():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
