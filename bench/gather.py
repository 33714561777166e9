"""The same queries as the Go contenders', by SQLAlchemy: each in an AsyncSession of its own, all under asyncio.gather,
and their rows merged into one session's identity map.

The first line on standard input says where the server is, every other one asks for one call. The answers say how long
it took.
"""

import asyncio
import json
import sys
import time
import zlib

try:
    import asyncpg  # noqa: F401
    from sqlalchemy import Column, Integer, Text, select, text
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import declarative_base
except ImportError as missing:
    print(missing, file=sys.stderr)
    sys.exit(3)

Base = declarative_base()


class Small(Base):
    __tablename__ = "small"
    id = Column(Integer, primary_key=True)
    data = Column(Text, nullable=False)


class Big(Base):
    __tablename__ = "big"
    id = Column(Integer, primary_key=True)
    data = Column(Text, nullable=False)


def look_up(draw):
    return select(Big).where(Big.id == draw)


def as_written(sql):
    statement = select(Big).from_statement(text(sql))
    return lambda **arguments: statement.params(**arguments)


waits = as_written("select big.id, big.data from big cross join pg_sleep(0.005) where big.id = :id")
waits_long = as_written("select big.id, big.data from big cross join pg_sleep(0.02) where big.id = :id")
burns = as_written(
    "select big.id, big.data from big cross join lateral"
    " (select count(*) from (select generate_series(big.id, big.id + cast(:count as integer))) counted) burned"
    " where big.id = :id"
)


def statements(burn):
    return {
        "scan": lambda draw: select(Small).where(Small.data == f"a_{draw}").order_by(Small.id),
        "lookup": look_up,
        "wait": lambda draw: waits(id=draw),
        "cpu": lambda draw: burns(id=draw, count=burn),
        "mixed": lambda draw: waits_long(id=-draw) if draw < 0 else look_up(draw),
        "wide": lambda draw: select(Big).where(Big.id.between(draw, draw + 9999)),
    }


async def run(engine, statement):
    async with AsyncSession(engine) as session:
        return (await session.execute(statement)).scalars().all()


async def gather(engine, queries):
    lists = await asyncio.gather(*(run(engine, query) for query in queries))
    async with AsyncSession(engine) as target:

        def merge(session):
            return {row.id: session.merge(row, load=False) for rows in lists for row in rows}

        return await target.run_sync(merge)


def digest(merged):
    checksums = (zlib.crc32(f"{row.id}:{row.data}".encode()) for row in merged.values())
    return {"rows": len(merged), "sum": sum(checksums)}


async def main():
    settings = json.loads(sys.stdin.readline())
    engine = create_async_engine(
        URL.create(
            "postgresql+asyncpg",
            username=settings["user"],
            password=settings["password"] or None,
            database=settings["database"] or None,
            query={"host": settings["host"], "port": str(settings["port"])},
        ),
        connect_args={
            "ssl": "prefer" if settings["tls"] else False,
            "server_settings": {"search_path": settings["search_path"]},
        },
        # Without it each session would have a BEGIN and a ROLLBACK, which nobody else here has.
        isolation_level="AUTOCOMMIT",
        **({} if settings["as_example"] else {"pool_size": settings["connections"], "max_overflow": 0}),
        pool_timeout=3600,
    )
    connections = [await engine.connect() for _ in range(settings["connections"])]
    for connection in connections:
        await connection.close()
    made = statements(settings["burn"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            queries = [made[request["statement"]](draw) for draw in request["draws"]]
            start = time.perf_counter()
            merged = await gather(engine, queries)
            answer = {"seconds": time.perf_counter() - start}
            if request["digest"]:
                answer["digest"] = digest(merged)
        except Exception as failure:
            answer = {"error": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), flush=True)
    await engine.dispose()


asyncio.run(main())
