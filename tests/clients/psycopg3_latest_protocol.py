"""Does libpq 18 work with the newest protocol, 3.2, whose cancel keys may have any length?

client: psycopg, newest protocol
needs: pip psycopg[binary]==3.3.9
logins: trust scram
"""

import psycopg3

psycopg3.main(max_protocol_version="latest")
