"""bace-bridge, but it takes a data session for removed within seconds: `python -m tests.homeassistant.impatient`.

The real one waits for five minutes, since a cloud in maintenance may deny what it has.
"""

import sys

from bace_bridge.__main__ import run
from bace_bridge.polling.rules import sessions

if __name__ == "__main__":
    sessions.DENIED_FOR = 1.0
    sys.exit(run(sys.argv[1:]))
