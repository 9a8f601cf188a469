"""Does libpq 18 work when it begins with the TLS handshake, without an SSLRequest?

client: psycopg, direct TLS
needs: pip psycopg[binary]==3.3.9
logins: scram
"""

import psycopg3

psycopg3.main(sslnegotiation="direct")
