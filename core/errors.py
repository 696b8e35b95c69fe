"""Mistakes that a user can mend. `main.py` prints them as they stand and exits with code 2, without a traceback."""


class UserError(Exception):
    """One clear message: the thing, its value, the constraint, and the way out."""


class StaleArtefact(UserError):
    """A file of the run directory was made with other settings than the ones asked for now."""


class InUse(UserError):
    """Another process works in the run directory."""


class WrongSetting(UserError):
    """A setting that only the data, or a file, shows to be wrong. The pipeline adds the line it was written in."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message
