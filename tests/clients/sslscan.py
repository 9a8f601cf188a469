"""Which versions, ciphers and groups does a listener accept?

client: sslscan
needs: apt sslscan
logins: scram
"""

import os
import re
import subprocess
from xml.etree import ElementTree

from dbapi import equal

command = [
    "sslscan",
    "--starttls-psql",
    "--xml=-",
    f"{os.environ['PGHOST']}:{os.environ['PGPORT']}",
]
found = subprocess.run(command, capture_output=True, check=True, timeout=50).stdout
scan = ElementTree.fromstring(found)
print(f"version: {scan.get('version').split('-')[0]}")

protocols = {
    f"{item.get('type')} {item.get('version')}"
    for item in scan.iter("protocol")
    if item.get("enabled") == "1"
}
equal(protocols, {"tls 1.2", "tls 1.3"})
ciphers = [(item.get("cipher"), int(item.get("bits"))) for item in scan.iter("cipher")]
assert ciphers, found.decode()
# All ciphers of TLS 1.3 have forward secrecy, AEAD and 128 bits or more.
weak = [
    name
    for name, bits in ciphers
    if not re.match(r"TLS_|ECDHE-.*(GCM|POLY1305)", name) or bits < 128
]
equal(weak, [])
equal(
    [item.get("sslversion") for item in scan.iter("heartbleed") if item.get("vulnerable") != "0"],
    [],
)
groups = sorted({item.get("name") for item in scan.iter("group")})
print(f"note: {len(ciphers)} ciphers, none weak; groups {', '.join(groups)}")
