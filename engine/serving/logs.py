"""Logs as JSON, an object a line, with the id of the HTTP request. They hold no prompts, keys or addresses of media."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One line of JSON for a record: its message, and whatever was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (found := request_id.get()) is not None:
            values["request_id"] = found
        values |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = record.exc_info[0].__name__
            values["traceback"] = places(record)
        return json.dumps(values, default=str)


def places(record: logging.LogRecord) -> list[str]:
    """Where an error came from, as files and lines. Its message is left out: it may quote a prompt."""
    found = record.exc_info[2] if record.exc_info else None
    lines = []
    while found is not None:
        code = found.tb_frame.f_code
        lines.append(f"{code.co_filename}:{found.tb_lineno} {code.co_name}")
        found = found.tb_next
    return lines


def configure(level: int = logging.INFO) -> None:
    """Send every log of this process as JSON to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # it would log queries; the middleware logs requests
