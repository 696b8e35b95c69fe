"""Privacy Meter: what does a trained model reveal about its training data?"""

from __future__ import annotations

import argparse
import sys

from core.arguments import HELLO, parser
from core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if not (options.cf or options.list or options.init or options.schema or options.command):
        print(HELLO)
        return 2  # nothing was done: a script that lost its arguments must not look green
    import audit  # noqa: F401  (these fill the registries; none imports torch)
    import dataset  # noqa: F401
    import models  # noqa: F401
    import modules.mia  # noqa: F401
    import trainers  # noqa: F401
    from core import log, plugins

    log.setup()
    try:
        for file in options.plugin:
            plugins.load(file)
        text, code = answer(options)
        if text:
            print(text)
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # the machine's: a full disk, a folder that may not be read
        print(f"{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command continues", file=sys.stderr)
        return 130


def answer(options: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit code."""
    from audit import commands
    from core import config, reference

    if options.command:
        return commands.COMMANDS[options.command](options)
    if options.list:
        return reference.listing(*options.list), 0
    if options.schema or options.init:
        return commands.schema() if options.schema else commands.started(options.init)
    experiment = config.load(options.cf, options.set)
    from audit import pipeline

    if options.check or options.probe or options.like:
        return pipeline.check(experiment, probe=options.probe, like=options.like), 0
    return commands.run(experiment, options.models)


if __name__ == "__main__":
    sys.exit(main())
