"""`python -m tandem_operator`: reads the settings and runs the operator until it is told to end.

Exit status 2: the settings are wrong; 1: something failed for good, and whoever started the process should do so
again; 0: it was told to end.
"""

import asyncio
import logging
import sys

import kopf

from tandem_api import logs
from tandem_operator.app import run
from tandem_operator.config import (
    CONFIG_VARIABLE,
    MASTER_SECRET_VARIABLE,
    ConfigError,
    LogConfig,
    load_config,
    load_master_secret,
    required_path,
)

log = logging.getLogger("tandem_operator")


def configure_logs(config: LogConfig) -> None:
    """Sets up the process's logging; the libraries' own lines appear only from warnings on."""
    logs.configure(config.format.value, config.level)
    for name in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> int:
    """Runs the operator; returns the exit status."""
    try:
        config = load_config(required_path(CONFIG_VARIABLE))
        master = load_master_secret(required_path(MASTER_SECRET_VARIABLE))
    except ConfigError as error:
        print(f"tandem-operator: {error}", file=sys.stderr)
        return 2
    configure_logs(config.log)
    try:
        failure = asyncio.run(run(config, master))
    except kopf.LoginError as error:
        log.error("The operator cannot log in to a cluster: %s.", error)
        return 1
    except OSError as error:
        log.error("The operator cannot start: %s.", error)
        return 1
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
