"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input or a missing prerequisite: one line that says what was wrong, where, and what to do.

    The command line prints it and exits with code 2; as a library, it is raised like any other exception.
    """
