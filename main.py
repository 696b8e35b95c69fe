"""Privacy Meter: what does a trained model reveal about its training data?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.errors import UserError

KINDS = ("datasets", "models", "trainers", "attacks", "modules", "sources", "config")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cf", type=Path, metavar="FILE", help="the experiment: a YAML file, see configs/")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="e.g. train.epochs=1"
    )
    parser.add_argument("--check", action="store_true", help="check the config, print the plan, and stop")
    parser.add_argument("--list", choices=KINDS, help="what a config can name")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help="your own .py"
    )
    arguments_ = parser.parse_args(arguments)
    if not (arguments_.cf or arguments_.list):
        parser.error("nothing to do: give --cf FILE, e.g. --cf configs/quickstart.yaml, or --list attacks")
    return arguments_


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    import audit  # noqa: F401  (these fill the registries; none imports torch)
    import dataset  # noqa: F401
    import models  # noqa: F401
    import modules.mia  # noqa: F401
    import trainers  # noqa: F401
    from core import config, log, plugins, reference

    log.setup()
    try:
        for file in options.plugin:
            plugins.load(file)
        if options.list:
            print(reference.listing(options.list))
            return 0
        experiment = config.load(options.cf, options.set)
        from audit import pipeline

        if options.check:
            print(pipeline.check(experiment))
        else:
            from audit.report import print_summary

            print_summary(pipeline.run(experiment), experiment.report_dir)
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # the machine's: a full disk, a folder that may not be read
        print(f"{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
