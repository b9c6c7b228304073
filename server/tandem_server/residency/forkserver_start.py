"""Imported by the fork server first of all, and by nothing else: sets it apart from the front end's process group.

A signal to the group (Ctrl-C, `systemctl stop`, `timeout`) is for the front end, which drains; a fork server that died
of it would take the runners' requests along. It ends by itself when the front end and all runners are gone. It adopts
the orphans of dead runners, so that none stays a zombie where the container's first process reaps nobody.
"""

import ctypes
import os
import signal
import warnings

PR_SET_CHILD_SUBREAPER = 36

if os.getpid() != os.getsid(0):
    os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
# It reaps every child that ends, and warns of those that it did not start: the orphans that it adopted.
warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
