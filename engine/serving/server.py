"""The process of a server: sockets, signals, and a clean end."""

from __future__ import annotations

import logging
from types import FrameType

import uvicorn
from fastapi import FastAPI

log = logging.getLogger("syncflow.serving")
STREAMS = 10  # seconds that open responses have after the drain


class Server(uvicorn.Server):
    """uvicorn, which tells the application of a signal at once: streams end, and no more jobs are accepted."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: the first signal drains, a second one does not wait. Neither is raised again at the end."""
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.service.pause()
        self.force_exit = self.should_exit
        self.should_exit = True


def configuration(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """What uvicorn is told."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",  # has a limit for headers
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(app.state.service.settings.drain) + STREAMS,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``ValueError`` for an address that cannot be used."""
    config = configuration(app, host, port)
    server = Server(config)
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise ValueError(f"the address {host}:{port} cannot be used; another process may have it") from None
    log.info("serving", extra={"host": host, "port": socket.getsockname()[1]})
    server.run(sockets=[socket])
