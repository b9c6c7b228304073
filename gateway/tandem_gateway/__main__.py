"""`python -m tandem_gateway`: starts the gateway; what it is told stands in `settings`."""

import asyncio
import logging
import os
import sys

import uvloop
from lightkube.exceptions import ConfigError

from tandem_api import logs
from tandem_gateway.serve import serve
from tandem_gateway.settings import SettingsError, from_environment


def main() -> int:
    """Runs until told to end; the process's exit status."""
    try:
        settings = from_environment(os.environ)
        logs.configure("json" if settings.log_format == "json" else "text", settings.log_level)
        # The HTTP server tells of its own life at info; the gateway does that in its own words.
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except SettingsError as error:
        sys.stderr.write(f"The gateway cannot start: {error}\n")
        return 2
    except (ConfigError, OSError) as error:
        logging.getLogger(__name__).error("The gateway cannot start: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
