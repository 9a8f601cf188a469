"""Which steps does every Python driver with the DB-API and %s parameters have to go through?"""

import os
import threading
import traceback

ROWS = 3000
# The notice tells the client that there is now something to cancel.
SLEEP = "do $$ begin raise notice 'begun'; perform pg_sleep(30); end $$"


def one(connection, statement, parameters=()):
    cursor = connection.cursor()
    cursor.execute(statement, parameters) if parameters else cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    return row[0]


def equal(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"


def steps(connection):
    equal(one(connection, "select current_user"), os.environ["EXPECTED_USER"])
    equal(one(connection, "select cast(%s as integer) + 1", (41,)), 42)
    equal(one(connection, "select cast(%s as varchar)", ("naïve ✓",)), "naïve ✓")
    many_rows(connection)
    error(connection, "select 1/0", "22012")
    equal(one(connection, "select 2"), 2)
    connection.rollback()


def many_rows(connection):
    cursor = connection.cursor()
    cursor.execute("create temporary table clients_rows (number integer, text varchar(200))")
    cursor.executemany(
        "insert into clients_rows values (%s, %s)", [(number, "x" * 150) for number in range(ROWS)]
    )
    cursor.execute("select number, text from clients_rows order by number")
    rows = cursor.fetchall()
    equal([tuple(row) for row in rows], [(number, "x" * 150) for number in range(ROWS)])
    cursor.close()
    connection.commit()


def error(connection, statement, sqlstate):
    """Asserts that the statement fails with this SQLSTATE and leaves the session usable."""
    try:
        connection.cursor().execute(statement)
    except Exception as error:  # Each driver has its own classes.
        found = getattr(error, "sqlstate", None) or str(error)
        assert sqlstate in found, f"{found!r} instead of {sqlstate}"
        connection.rollback()
    else:
        raise AssertionError(f"{statement} did not fail")


def cancelled(connection, begun, cancel):
    """Asserts that SLEEP ends with 57014 when another thread cancels it once `begun` is set."""
    failures = []

    def at_once():
        try:
            assert begun.wait(20), "no notice came"
            cancel()
        except BaseException:
            failures.append(traceback.format_exc())

    begun.clear()
    thread = threading.Thread(target=at_once)
    thread.start()
    error(connection, SLEEP, "57014")
    thread.join()
    assert not failures, failures[0]
    equal(one(connection, "select 3"), 3)
    connection.rollback()
