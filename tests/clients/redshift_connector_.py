"""Does Amazon's Python driver for Redshift work?

It cannot cancel queries, and its SCRAM mistakes the end of the list of mechanisms for another one.
This file has another name than the module, so that `import redshift_connector` does not find it.

client: redshift_connector
needs: pip redshift_connector==2.2.0
logins: trust md5 password
"""

import os

import packaging.version
import redshift_connector

import dbapi


def main():
    print(f"version: {redshift_connector.__version__}")
    try:
        connection = connect()
    except packaging.version.InvalidVersion as error:
        # Debian's PostgreSQL reports "15.18 (Debian 15.18-0+deb12u1)", which the driver cannot
        # parse. RDS reports "15.18".
        assert "(Debian" in str(error), error
        print("note: server_version cut for the driver, RDS does not have Debian's")
        parse = packaging.version.parse
        packaging.version.parse = lambda text: parse(text.split(" ")[0])
        connection = connect()
    dbapi.steps(connection)
    connection.close()


# The driver trusts the authorities of Amazon and those that Python trusts.
if "PGSSLROOTCERT" in os.environ:
    os.environ["SSL_CERT_FILE"] = os.environ["PGSSLROOTCERT"]


def connect():
    return redshift_connector.connect(
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        user=os.environ["PGUSER"],
        database=os.environ["PGDATABASE"],
        # The driver insists on a password, even if nobody asks for it.
        password=os.environ.get("PGPASSWORD", "none"),
        ssl="PGSSLROOTCERT" in os.environ,
        sslmode="verify-full",
    )


main()
