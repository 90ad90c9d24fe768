"""The one exception that a user is meant to read."""

import re


class UserError(Exception):
    """Bad input or a missing prerequisite: one line that says what was wrong, where, and what to do.

    The command line prints it and exits with code 2; as a library, it is raised like any other exception.
    """


def one_line(text: str) -> str:
    """`text` for a terminal: in one line, and with what would act on the terminal (a file's name may hold it) written out."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", " ".join(text.split()))
