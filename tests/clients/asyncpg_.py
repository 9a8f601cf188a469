"""Does asyncpg work, which has its own implementation of the protocol?

This file has another name than the module, so that `import asyncpg` does not find it.

client: asyncpg
needs: pip asyncpg==0.32.0
logins: trust scram md5 password
"""

import asyncio
import os
import time

import asyncpg

from dbapi import ROWS, SLEEP, equal


async def main():
    connection = await asyncpg.connect()
    print(f"version: {asyncpg.__version__}")
    equal(await connection.fetchval("select current_user"), os.environ["EXPECTED_USER"])
    equal(await connection.fetchval("select $1::integer + 1", 41), 42)
    await many_rows(connection)
    await error(connection)
    await cancel(connection)
    await connection.close()


async def many_rows(connection):
    rows = [(number, "x" * 150) for number in range(ROWS)]
    await connection.execute(
        "create temporary table clients_rows (number integer, text varchar(200))"
    )
    await connection.executemany("insert into clients_rows values ($1, $2)", rows)
    found = await connection.fetch("select number, text from clients_rows order by number")
    equal([tuple(row) for row in found], rows)
    await connection.copy_records_to_table("clients_rows", records=rows)
    equal(await connection.fetchval("select count(*) from clients_rows"), 2 * ROWS)


async def error(connection):
    try:
        await connection.fetchval("select 1/0")
    except asyncpg.DivisionByZeroError:
        equal(await connection.fetchval("select 2"), 2)
    else:
        raise AssertionError("select 1/0 did not fail")


async def cancel(connection):
    """asyncpg sends a CancelRequest when the task is cancelled, and does not pass on the 57014."""
    begun = asyncio.Event()
    connection.add_log_listener(lambda *_: begun.set())
    task = asyncio.create_task(connection.execute(SLEEP))
    await asyncio.wait_for(begun.wait(), 20)
    started = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    equal(await connection.fetchval("select 3"), 3)
    assert time.monotonic() - started < 15, "the query was not cancelled"
    print("note: binary COPY; cancel seen by its effect")


asyncio.run(main())
