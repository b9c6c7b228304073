"""`python -m tandem_server`: a serving pod, all from the environment."""

import os
import sys

import uvloop

from tandem_server import logs
from tandem_server.config import Settings, SettingsError
from tandem_server.devices import DeviceError
from tandem_server.serve import run_pod


def main() -> int:
    """Exit code: 0 after an orderly end, 2 for settings that cannot be used, 3 for a device that is not there."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"tandem: {error}\n")
        return 2
    logs.configure(settings.log_format)
    try:
        uvloop.run(run_pod(settings))
    except SettingsError as error:
        sys.stderr.write(f"tandem: {error}\n")
        return 2
    except DeviceError as error:
        sys.stderr.write(f"tandem: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
