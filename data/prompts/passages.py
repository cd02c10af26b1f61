"""Plain text to measure perplexity on: passages of everyday prose, our own or the user's."""

from pathlib import Path

from data.errors import UserError

PLAIN = Path(__file__).parents[1] / "plain.txt"


def passages(path: Path | None = None) -> list[str]:
    """The passages of a text file, which blank lines part; without a file those of our own `plain.txt`.

    Raises:
        UserError: No such file, not UTF-8, or nothing in it.
    """
    path = PLAIN if path is None else path.expanduser()
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    parts = "\n".join(line.strip() for line in text.splitlines()).split("\n\n")
    found = [" ".join(part.split()) for part in parts if part.strip()]
    if not found:
        raise UserError(f"{path}: no text in it")
    return found
