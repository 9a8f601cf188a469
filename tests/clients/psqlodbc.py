"""Does PostgreSQL's ODBC driver work with pyodbc?

client: psqlODBC
needs: apt libodbc2 odbc-postgresql
needs: pip pyodbc==5.5.0
logins: trust scram md5 password
"""

import os

import pyodbc

import dbapi


class Percent:
    """Replaces %s by the question marks that pyodbc uses for parameters."""

    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def cursor(self):
        cursor = self.connection.cursor()
        return Cursor(cursor)


class Cursor:
    def __init__(self, cursor):
        self.cursor = cursor

    def __getattr__(self, name):
        return getattr(self.cursor, name)

    def execute(self, statement, *parameters):
        return self.cursor.execute(statement.replace("%s", "?"), *parameters)

    def executemany(self, statement, rows):
        return self.cursor.executemany(statement.replace("%s", "?"), rows)


def settings():
    text = (
        "Driver={{PostgreSQL Unicode}};Server={PGHOST};Port={PGPORT};"
        "Database={PGDATABASE};Uid={PGUSER}"
    ).format(**os.environ)
    if "PGPASSWORD" in os.environ:
        # Braces protect special characters, and a closing brace is doubled.
        text += ";Pwd={" + os.environ["PGPASSWORD"].replace("}", "}}") + "}"
    if "PGSSLMODE" in os.environ:
        text += ";SSLmode={PGSSLMODE}".format(**os.environ)
    return text


connection = pyodbc.connect(settings())
print(f"version: {connection.getinfo(pyodbc.SQL_DRIVER_VER)}, pyodbc {pyodbc.version}")
dbapi.steps(Percent(connection))
connection.close()
