"""What a runner process runs: the wire, and the engines behind it.

Importing it makes OpenMP's threads sleep rather than spin while they wait, in this process and in those it starts:
the library reads the variable once, when torch is imported. Spinning gains little where the CPUs are ours alone;
where they are shared, a spinning thread keeps the one it waits for from running (measured: 7 times slower and more).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
