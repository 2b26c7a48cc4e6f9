"""The HTTP listener: a page for people, health checks, and metrics.

It needs what the `web` extra installs, and is imported only where `BRIDGE_HTTP__LISTEN` is set.
"""

from bridge.web.server import listen

__all__ = ["listen"]
