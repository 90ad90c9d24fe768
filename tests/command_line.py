"""The command line in the process of the tests."""

import sys

import pytest

from jrdp import cli


def run_jrdp(monkeypatch, capsys, *arguments):
    """`jrdp ARGUMENTS`, which ends as a command does -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["jrdp", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err
