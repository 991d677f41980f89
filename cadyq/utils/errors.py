"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input that the user can put right.

    The message is one line that names the file or option, the value found and the remedy. Command-line
    programs print it without a traceback and exit with status 2.
    """
