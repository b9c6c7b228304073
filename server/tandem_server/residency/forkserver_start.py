"""Imported by the fork server first of all, and by nothing else: takes it out of the front end's process group.

A signal to the group (Ctrl-C, `systemctl stop`, `timeout`) is for the front end, which drains; a fork server that died
of it would take the runners' requests along. It ends by itself when the front end and all runners are gone.
"""

import os
import signal

if os.getpid() != os.getsid(0):
    os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
