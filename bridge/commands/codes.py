"""Exit codes, those of sysexits.h. `run` knows only 0 and CONFIGURATION: all else is a state inside it."""

UNAVAILABLE = 69
REFUSED = 77
CONFIGURATION = 78
STOPPED = 130
"""As shells have it for Ctrl-C."""
