"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """What is wrong and what to do about it, in one line; the command line prints it and exits 1."""


class OutOfReachError(UserError):
    """The hub did not answer: asking it for anything else would only take as long again."""


class TooBigError(UserError):
    """The server can't do so much in one job; less may do."""
