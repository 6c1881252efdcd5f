"""Tables of the database of jobs, and connections to it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

metadata = MetaData()
NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by INTEGER alone

jobs = Table(
    "syncflow_jobs",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("server", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("params", JSON, nullable=False),
    Column("upload", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("attempts", Integer, nullable=False, default=0),
    Column("completions", Integer, nullable=False, default=0),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64)),
    UniqueConstraint("server", "tenant", "idempotency_key"),
    Index("syncflow_jobs_by_status", "server", "status", "number"),
    Index("syncflow_jobs_by_tenant", "server", "tenant", "number"),
    sqlite_autoincrement=True,
)
usage = Table(
    "syncflow_usage",
    metadata,
    Column("server", String(64), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("videos", Integer, nullable=False),
)


def connect(url: str) -> Engine:
    """A database with the tables. SQLite writes ahead and to the disk before a transaction counts as done.

    Raises ``ValueError`` for a database that cannot be opened.
    """
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))  # a file is never disconnected
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        metadata.create_all(engine)
    except ArgumentError as error:
        raise ValueError("the database is no URL; write it as postgresql+psycopg://user@host/name") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"the database needs the driver {error.name}, which is not installed") from error
    except SQLAlchemyError as error:  # whose message may hold the password
        raise ValueError(f"the database cannot be opened ({type(error).__name__})") from None
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
