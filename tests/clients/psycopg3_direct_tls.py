"""libpq 18 that begins with the TLS handshake, without SSLRequest.

client: psycopg, direct TLS
needs: pip psycopg[binary]==3.3.9
logins: scram
"""

import psycopg3

psycopg3.main(sslnegotiation="direct")
