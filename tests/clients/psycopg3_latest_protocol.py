"""libpq 18 asking for the newest protocol it knows, 3.2, with cancel keys of any length.

client: psycopg, newest protocol
needs: pip psycopg[binary]==3.3.9
logins: trust scram
"""

import psycopg3

psycopg3.main(max_protocol_version="latest")
