"""How does libpq 18 get in? Prints the user, whether there is TLS, and the version of the protocol.

With `cancel` it prints the SQLSTATEs of queries that are cancelled over TLS and in plaintext.
"""

import sys

import psycopg
from psycopg import pq

assert pq.version() >= 180000, f"libpq {pq.version()} is too old: run\n    make venv"
conninfo, *arguments = sys.argv[1:]


def cancelled(connection, observer, cancel):
    connection.pgconn.send_query(b"select pg_sleep(60)")
    running = "select count(*) from pg_locks where pid = %s and locktype = 'virtualxid'"
    while observer.execute(running, [connection.info.backend_pid]).fetchone() == (0,):
        pass
    cancel()
    [result] = iter(connection.pgconn.get_result, None)
    return result.error_field(pq.DiagnosticField.SQLSTATE).decode()


try:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if arguments == ["cancel"]:
            with psycopg.connect(conninfo, autocommit=True) as observer:
                # PQcancelStart uses TLS if the connection does, and PQcancel never does.
                ways = [connection.cancel_safe, connection.cancel]
                print(*(cancelled(connection, observer, way) for way in ways))
        else:
            [user] = connection.execute("select current_user").fetchone()
            pgconn = connection.pgconn
            print(f"{user} tls={bool(pgconn.ssl_in_use)} protocol={pgconn.full_protocol_version}")
except psycopg.Error as error:
    sys.exit(str(error))
