"""The command line: read and steer refusal in Llama models. `python cli.py extract vectors trace evaluate report`."""

import importlib
import logging
import os
import pkgutil
import sys
import warnings

import click

import commands
from commands.framework.app import cli
from commands.framework.output import one_line, warn
from data.visible import VisibleFormatter

for module in pkgutil.iter_modules(commands.__path__, "commands."):  # each registers its command
    importlib.import_module(module.name)


def main() -> None:
    """Run, and turn every failure into one line and the exit status of the contract."""
    debug = "--debug" in sys.argv or os.environ.get("REFUSAL_DEBUG", "").lower() in ("1", "true", "yes")
    if not debug:  # the hub's client would say each try; what comes of them is said once
        os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries, to their callers
    # Libraries stay quiet even with --debug: HTTP ones log whole addresses, which may hold a key.
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(VisibleFormatter())
    logging.basicConfig(level=logging.WARNING if debug else logging.ERROR, handlers=[shown])
    for own in ("commands", "data", "interventions", "refusal_steering", "reports", "serving"):
        logging.getLogger(own).setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        cli.main(standalone_mode=False)
        code = 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.UsageError as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        warn("interrupted; finished batches are kept: run the same command again to go on")
        code = 130
    except Exception as error:
        if debug:
            raise
        warn(f"error: {one_line(error)}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
