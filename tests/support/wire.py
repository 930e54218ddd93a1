"""A proxy before a PostgreSQL server that records what really goes over the wire."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import psycopg
from sqlalchemy.engine import make_url

_COMMAND_COMPLETE, _READY = b"C", b"Z"


class Wire:
    """Forwards between clients and the server.

    Attributes:
        round_trips: What the server was made to do, each time that it was asked and waited for: the tags of the
            statements that it carried out, such as `["BEGIN"]` or `["INSERT 0 1"]`.
    """

    def __init__(self, server_url: str) -> None:
        with psycopg.connect(server_url) as connection:
            self._host, self._port = connection.info.host, connection.info.port
        self.round_trips: list[list[str]] = []
        self._tags: list[str] = []

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it."""
        if self._host.startswith("/"):
            server, to_server = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            server, to_server = await asyncio.open_connection(self._host, self._port)
        questions = asyncio.ensure_future(self._questions(client, to_server))
        try:
            # A side that goes away is an end like any other.
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._answers(server, to_client)
        finally:
            questions.cancel()
            await asyncio.gather(questions, return_exceptions=True)
            for writer in (to_client, to_server):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _questions(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            to_server.write(data)
            await to_server.drain()
        to_server.close()

    async def _answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while True:
            head = await server.readexactly(5)  # the type, and the length, which counts itself but not the type
            content = await server.readexactly(int.from_bytes(head[1:]) - 4)
            if head[:1] == _COMMAND_COMPLETE:
                self._tags.append(content[:-1].decode())
            if head[:1] == _READY:
                self.round_trips.append(self._tags)
                self._tags = []
            to_client.write(head + content)
            await to_client.drain()


@asynccontextmanager
async def wire_before(url: str) -> AsyncGenerator[tuple[Wire, str]]:
    """Run a proxy before the server of a database; gives it, and the URL of the same database by way of it."""
    wire = Wire(url)
    connections: set[asyncio.Task[None]] = set()

    def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connections.add(asyncio.ensure_future(wire.serve(client, to_client)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    direct = make_url(url).difference_update_query(["host", "port"])
    # The proxy could not look into an encrypted connection.
    by_way_of_it = direct.set(host="127.0.0.1", port=listener.sockets[0].getsockname()[1]).update_query_dict(
        {"sslmode": "disable", "gssencmode": "disable"}
    )
    try:
        yield wire, by_way_of_it.render_as_string(hide_password=False)
    finally:
        listener.close()
        for connection in connections:
            connection.cancel()
        results = await asyncio.gather(*connections, return_exceptions=True)
        await listener.wait_closed()
    for result in results:
        if isinstance(result, Exception):
            raise result
