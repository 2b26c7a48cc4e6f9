"""`iqgateway2mqtt …` and `python -m bridge …`."""

import sys

from bridge import commands


def main() -> None:
    sys.exit(commands.main())


if __name__ == "__main__":
    main()
