"""The one error a user can cause."""


class InputError(ValueError):
    """Input that cannot be used: the message names the thing, what was expected, what was found and what to do.

    The command line prints the message alone and exits with code 2.
    """


class Diverged(InputError):
    """A loss or gradient became non-finite; the message names the step, the student learning rate and the advice."""
