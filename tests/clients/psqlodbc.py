"""PostgreSQL's ODBC driver, by pyodbc.

client: psqlODBC
needs: apt libodbc2 odbc-postgresql
needs: pip pyodbc==5.5.0
"""

import os

import pyodbc

import dbapi


class Percent:
    """pyodbc's parameters are question marks."""

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


settings = "Driver={{PostgreSQL Unicode}};Server={PGHOST};Port={PGPORT};Database={PGDATABASE};Uid={PGUSER}"
connection = pyodbc.connect(settings.format(**os.environ))
print(f"version: {connection.getinfo(pyodbc.SQL_DRIVER_VER)}, pyodbc {pyodbc.version}")
dbapi.steps(Percent(connection))
connection.close()
