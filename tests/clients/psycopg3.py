"""Does libpq 18 work as psycopg bundles it? By default it prefers GSS and TLS, and speaks 3.0.

client: psycopg
needs: pip psycopg[binary]==3.3.9
logins: trust scram md5 password
"""

import threading

import psycopg

import dbapi


def main(**options):
    with psycopg.connect(**options) as connection:
        print(
            f"version: {psycopg.__version__}, "
            f"libpq {psycopg.pq.version_pretty(psycopg.pq.version())}"
        )
        dbapi.steps(connection)
        copy(connection)
        begun = threading.Event()
        connection.add_notice_handler(lambda notice: begun.set())
        dbapi.cancelled(connection, begun, connection.cancel)
        dbapi.cancelled(connection, begun, connection.cancel_safe)
        print(
            f"note: protocol {protocol(connection)}, COPY, both kinds of cancel, "
            f"{'TLS' if connection.pgconn.ssl_in_use else 'no TLS'}"
        )
        return protocol(connection)


def protocol(connection):
    version = connection.pgconn.full_protocol_version
    return f"{version // 10000}.{version % 10000}"


def copy(connection):
    with connection.cursor() as cursor:
        with cursor.copy("copy clients_rows from stdin") as into:
            for number in range(5000):
                into.write_row((number, "copied"))
        with cursor.copy(
            "copy (select number from clients_rows where text = 'copied') to stdout"
        ) as out:
            dbapi.equal(sum(int(row[0]) for row in out.rows()), sum(range(5000)))
    connection.commit()


if __name__ == "__main__":
    main()
