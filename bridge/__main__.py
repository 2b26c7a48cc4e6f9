"""`iqgateway2mqtt …` and `python -m bridge …`."""

import signal
import sys


def main() -> None:
    if sys.argv[1:2] == ["run"]:  # a reload that comes early waits until the service can do it, and does not end it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from bridge import commands  # noqa: PLC0415 - takes a second on a Pi

    sys.exit(commands.main())


if __name__ == "__main__":
    main()
