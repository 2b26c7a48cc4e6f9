"""Runs a server in a network namespace, so that it is not reachable from other machines.

    unshare -rn python enclave.py SOCKET PORT PROGRAM ...

PROGRAM listens at PORT in the namespace, which only has a loopback interface. The tests reach it through the Unix
socket SOCKET, because Unix sockets do not belong to a network namespace.
"""

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from contextlib import suppress

SIOCSIFFLAGS, IFF_UP, PR_SET_PDEATHSIG = 0x8914, 1, 1


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def relay(path: str, port: int) -> None:
    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_unix_server(join, path)
    await server.serve_forever()


def main() -> None:
    path, port, *program = sys.argv[1:]
    loopback_up()
    if os.fork():
        os.execv(program[0], program)  # noqa: S606 - the tests' own command line
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(relay(path, int(port)))


if __name__ == "__main__":
    main()
