"""The run-time checker of shape annotations: beartype, with the numeric tower of PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
