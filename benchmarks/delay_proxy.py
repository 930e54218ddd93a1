"""A proxy that makes round trips longer, in a process of its own, where it takes no time from what is measured.

It holds back each piece of what the server says for the same time, however many are on their way, and passes on at once
what the client says.
"""

import asyncio
import selectors
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select

from sqlalchemy import URL

from demo.server import ServerError

_ROOT = Path(__file__).resolve().parent.parent
_PIECE = 1 << 16  # bytes
_LONGEST_LIFE = 4 * 3600  # seconds
_START_LIMIT = 20  # seconds
_END_LIMIT = 5  # seconds


@contextmanager
def delayed(server: URL, milliseconds: float) -> Generator[URL]:
    """Start a proxy before the server, give the URL that leads through it, and end the proxy."""
    # The embedded server listens on a socket in the folder that its URL names.
    socket = Path(str(server.query["host"])) / f".s.PGSQL.{server.port or 5432}"
    command = [sys.executable, "-m", "benchmarks.delay_proxy", str(socket), str(milliseconds)]
    # In a session of its own: a Ctrl-C must not end it before the connections through it are closed. It ends when its
    # standard input does, whatever becomes of this process.
    process = subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select([process.stdout], [], [], _START_LIMIT)
        port = process.stdout.readline() if ready else b""
        if not port.strip():
            raise ServerError("the proxy that delays answers did not start")
        proxied = server.difference_update_query(["host", "port"]).set(host="127.0.0.1", port=int(port))
        yield proxied.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    on_their_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    clock = asyncio.get_running_loop().time

    async def receive() -> None:
        piece = b"begin"
        while piece:
            piece = await reader.read(_PIECE)
            on_their_way.put_nowait((clock() + delay, piece))

    async with asyncio.TaskGroup() as group:
        group.create_task(receive())
        due, piece = await on_their_way.get()
        while piece:
            if delay:
                await asyncio.sleep(due - clock())
            writer.write(piece)
            await writer.drain()
            due, piece = await on_their_way.get()
        writer.write_eof()


async def _serve(socket: str, delay: float) -> None:
    async def connection(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(socket)
        with suppress(OSError, ExceptionGroup):  # whoever goes away, it is over
            async with asyncio.TaskGroup() as group:
                group.create_task(_forward(client, to_server, 0))
                group.create_task(_forward(server, to_client, delay))
        to_client.close()
        to_server.close()

    parent = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    listener = await asyncio.start_server(connection, "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(_LONGEST_LIFE):
            await parent.read()


if __name__ == "__main__":
    # The usual selector waits for whole milliseconds; this one is exact.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(sys.argv[1], float(sys.argv[2]) / 1000))
