"""`hass`, but content with a patch release of Python that is a little older than the one it asks for."""

import sys

from homeassistant import const

if const.REQUIRED_PYTHON_VER[:2] == sys.version_info[:2]:
    const.REQUIRED_PYTHON_VER = min(const.REQUIRED_PYTHON_VER, sys.version_info[:3])

from homeassistant.__main__ import main

sys.exit(main())
