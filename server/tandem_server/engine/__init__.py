"""What a runner process runs: the wire, and the engines behind it.

Importing it makes OpenMP's threads spin only briefly before they sleep, in this process and in those it starts: the
library reads the variable once, when torch is imported. By default they spin for so long that, where the CPUs are
shared, a waiting thread keeps the one it waits for from running: a step then takes hundreds of times as long.
It also has torch ask for huge pages, without which a step that streams its weights waits for page tables too.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
