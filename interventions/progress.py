"""A progress bar on stderr, where results never go."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, initial: int, name: str, unit: str) -> Any:
    """A progress bar on stderr; every ten seconds a line where stderr is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=initial, desc=name, unit=unit, file=sys.stderr, mininterval=interval)
