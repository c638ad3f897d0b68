"""The one exception meant for the person at the keyboard."""


class InputError(ValueError):
    """Say in one sentence what was wrong with an input: which file or frame, what was expected, what to do.

    Readers, the command line, notebook parameters and checkpoints raise it; `nsw` prints its text and exits with 2.
    """


class CallError(InputError, AssertionError):
    """Say which argument of a call of gsplat's does not fit; gsplat asserts, so that code may catch an `AssertionError` here too.

    >>> issubclass(CallError, ValueError) and issubclass(CallError, AssertionError)
    True
    """
