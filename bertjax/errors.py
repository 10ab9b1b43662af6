"""The one exception that means "the input is wrong, not the program"."""


class InputError(ValueError):
    """Bad usage or bad input, told in one line: what, where (file, line, field), what to do.

    The command line prints the message as it stands and exits with code 2; library callers can
    catch it as a `ValueError`.
    """
