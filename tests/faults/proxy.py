"""A proxy before a PostgreSQL server that lets the client never hear of a commit that the server has made."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url

# Codes of the first, untyped message of a client's that ask for encryption. The server answers with a single byte.
_ENCRYPTION_REQUESTS = {80877103, 80877104}

_COMMAND_COMPLETE, _ERROR, _READY = b"C", b"E", b"Z"
_NO_TRANSACTION = b"I"  # what a "ready for query" says of the session: none, in one, in a failed one


class Proxy:
    """Forwards whole messages of PostgreSQL's protocol between clients and the server, until you ask it to cut.

    Attributes:
        port: Where it listens on 127.0.0.1.
        cuts: For each connection that was cut, the answer that the client did not get, such as `COMMIT`.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._armed: bytes | None = None
        self.port = 0
        self.cuts: list[str] = []

    def cut_after(self, said: bytes) -> None:
        """Cut the next connection on which the client sends this text, as soon as the server has committed.

        From the message on that contains `said`, no transaction has ended yet as long as the server reports one open.
        Its first report of none is what is held back. So it makes no difference whether the commit is a message of its
        own, or the message is one statement that commits by itself, nor which form of the protocol carries it.
        """
        self._armed = said

    def url(self, direct: str) -> str:
        """The URL of the same database by way of the proxy."""
        proxied = make_url(direct).difference_update_query(["host", "port"]).set(host="127.0.0.1", port=self.port)
        return proxied.render_as_string(hide_password=False)

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it, or it is cut."""
        server, to_server = await asyncio.open_unix_connection(str(self._server))
        try:
            # A side that goes away is an end like any other.
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await _start(client, to_client, server, to_server)
                await self._forward(client, to_client, server, to_server)
        finally:
            for writer in (to_client, to_server):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _forward(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        said = asyncio.Event()
        directions = [
            asyncio.ensure_future(self._requests(client, to_server, said)),
            asyncio.ensure_future(self._answers(server, to_client, said)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            results = await asyncio.gather(*directions, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _requests(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, said: asyncio.Event
    ) -> None:
        while True:
            message = await _message(client)
            if self._armed is not None and self._armed in message:
                self._armed = None
                said.set()
            to_server.write(message)
            await to_server.drain()

    async def _answers(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, said: asyncio.Event
    ) -> None:
        answer: list[bytes] = []
        while True:
            answer.append(await _message(server))
            # Only the whole answer shows how it ended. A client that waits for it does not notice that it comes late.
            if said.is_set() and _kind(answer[-1]) != _READY:
                continue
            if said.is_set() and _commits(answer):
                self.cuts.append(_tag(answer))
                return
            to_client.write(b"".join(answer))
            answer.clear()
            await to_client.drain()


@asynccontextmanager
async def proxy_before(server: Path) -> AsyncGenerator[Proxy]:
    """Run a proxy before the server that listens on a unix socket."""
    proxy = Proxy(server)
    connections: set[asyncio.Task[None]] = set()

    def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(proxy.serve(client, to_client))
        connections.add(connection)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        for connection in connections:
            connection.cancel()
        results = await asyncio.gather(*connections, return_exceptions=True)
        await listener.wait_closed()
    # A proxy that fails must not look like a connection that was cut.
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _start(
    client: asyncio.StreamReader,
    to_client: asyncio.StreamWriter,
    server: asyncio.StreamReader,
    to_server: asyncio.StreamWriter,
) -> None:
    """Forward what precedes the messages that have a type: requests to encrypt, which are refused, and the start."""
    while True:
        length = await client.readexactly(4)
        content = await client.readexactly(int.from_bytes(length) - 4)
        to_server.write(length + content)
        if int.from_bytes(content[:4]) not in _ENCRYPTION_REQUESTS:
            return
        answer = await server.readexactly(1)
        assert answer == b"N", "the proxy can't look into an encrypted connection"
        to_client.write(answer)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)  # the type, and the length, which counts itself but not the type
    return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)


def _kind(message: bytes) -> bytes:
    return message[:1]


def _commits(answer: list[bytes]) -> bool:
    return answer[-1][5:] == _NO_TRANSACTION and not any(_kind(message) == _ERROR for message in answer)


def _tag(answer: list[bytes]) -> str:
    return " ".join(message[5:-1].decode() for message in answer if _kind(message) == _COMMAND_COMPLETE)
