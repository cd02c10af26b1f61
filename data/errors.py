"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """What is wrong and what to do about it, in one line; the command line prints it and exits 1."""


class OutOfReachError(UserError):
    """The hub did not answer: asking it for anything else would only take as long again."""


class TooBigError(UserError):
    """The server can't do so much in one job; less may do."""


def cause_of(error: BaseException, most: int = 300) -> str:
    """What an exception of a library says, in one line, and what it was raised from, where that says something else."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    first, last = (" ".join(str(link).split()) or type(link).__name__ for link in (chain[0], chain[-1]))
    return (
        first[:most]
        if last in first
        else f"{first[: most // 2]}; because of {type(chain[-1]).__name__}: {last[: most // 2]}"
    )
