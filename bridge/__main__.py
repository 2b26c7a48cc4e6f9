"""Entry point of `iqgateway2mqtt` and `python -m bridge`."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C where it is not the usual end, as in shells."""
ENDLESS_COMMANDS = ("run", "demo", "simulate")
"""Commands that run until they are stopped, so that Ctrl-C is their usual end."""


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    code_when_stopped = 0 if command in ENDLESS_COMMANDS else INTERRUPTED

    def stop(_number: int, _frame: FrameType | None) -> None:
        """End at once: an exception in the middle of an import may get lost, or show a traceback."""
        os._exit(code_when_stopped)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, stop)
    if command == "run":  # what comes early waits until it is handled; by default it would end us, or do nothing
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    _open_closed_streams()
    from bridge.commands import main_with_output  # noqa: PLC0415 - takes a second on a Pi

    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main_with_output()
    except KeyboardInterrupt:
        code = code_when_stopped
        sys.stderr.write("\n")  # the terminal shows ^C in this line
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end itself can't be interrupted
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open /dev/null in place of standard streams that are closed, as after `2>&-`.

    Otherwise, the next file or connection would get the number of the stream, and what is written to the stream
    would go there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None and os.open(os.devnull, os.O_RDWR) == number:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - open to the end


if __name__ == "__main__":
    main()
