"""A PostgreSQL client over a TLS library of one's choice: `peer.py gnutls|openssl|nss 1.2|1.3`."""

import ctypes
import os
import socket
import struct
import subprocess
import sys

ROWS = 3000


class Gnutls:
    """GnuTLS through its C interface, since its command cannot send the zeros of PostgreSQL."""

    # It takes eight updates in a second.
    max_updates = 8

    def __init__(self, tcp, version):
        self.tcp, self.library = tcp, ctypes.CDLL("libgnutls.so.30")
        self.library.gnutls_check_version.restype = ctypes.c_char_p
        self.version = self.library.gnutls_check_version(None).decode()
        self.session, credentials = ctypes.c_void_p(), ctypes.c_void_p()
        client, certificate = 2, 1
        self.check(self.library.gnutls_init(ctypes.byref(self.session), client))
        self.check(self.library.gnutls_certificate_allocate_credentials(ctypes.byref(credentials)))
        self.check(
            self.library.gnutls_credentials_set(self.session, certificate, credentials)
        )
        priority = f"NORMAL:-VERS-ALL:+VERS-TLS{version}".encode()
        self.check(self.library.gnutls_priority_set_direct(self.session, priority, None))
        self.library.gnutls_transport_set_int2(self.session, tcp.fileno(), tcp.fileno())
        self.check(self.library.gnutls_handshake(self.session))

    def check(self, result):
        if result < 0:
            self.library.gnutls_strerror.restype = ctypes.c_char_p
            sys.exit(self.library.gnutls_strerror(result).decode())
        return result

    def send(self, data):
        send = self.library.gnutls_record_send
        send.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        send.restype = ctypes.c_ssize_t
        while data:
            data = data[self.check(send(self.session, data, len(data))) :]

    def receive(self):
        receive = self.library.gnutls_record_recv
        receive.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        receive.restype = ctypes.c_ssize_t
        buffer = ctypes.create_string_buffer(16384)
        interrupted, again = -52, -28
        while (got := receive(self.session, buffer, 16384)) in (interrupted, again):
            pass
        self.check(got)
        return buffer.raw[:got]

    def update_keys(self):
        peer_too = 1
        self.check(self.library.gnutls_session_key_update(self.session, peer_too))


class Openssl:
    """OpenSSL through its C interface, since its command takes letters of the data for its own."""

    max_updates = 1000

    def __init__(self, tcp, version):
        self.tcp, self.library = tcp, ctypes.CDLL("libssl.so.3")
        crypto = ctypes.CDLL("libcrypto.so.3")
        crypto.OpenSSL_version.restype = ctypes.c_char_p
        self.version = crypto.OpenSSL_version(0).decode()
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
            getattr(self.library, name).restype = ctypes.c_void_p
        context = self.library.SSL_CTX_new(ctypes.c_void_p(self.library.TLS_client_method()))
        self.session = ctypes.c_void_p(self.library.SSL_new(ctypes.c_void_p(context)))
        set_min, set_max = 123, 124
        number = {"1.2": 0x0303, "1.3": 0x0304}[version]
        for command in (set_min, set_max):
            self.check(self.library.SSL_ctrl(self.session, command, ctypes.c_long(number), None))
        self.check(self.library.SSL_set_fd(self.session, tcp.fileno()))
        self.check(self.library.SSL_connect(self.session))

    def check(self, result):
        if result <= 0:
            sys.exit(f"OpenSSL: error {self.library.SSL_get_error(self.session, result)}")
        return result

    def send(self, data):
        self.check(self.library.SSL_write(self.session, data, len(data)))

    def receive(self):
        buffer = ctypes.create_string_buffer(16384)
        got = self.check(self.library.SSL_read(self.session, buffer, 16384))
        return buffer.raw[:got]

    def update_keys(self):
        requested = 1
        self.check(self.library.SSL_key_update(self.session, requested))
        self.check(self.library.SSL_do_handshake(self.session))


class Nss:
    """NSS's own test client, which passes on what it reads and cannot update keys."""

    version = "tstclnt"
    max_updates = 0

    def __init__(self, tcp, version):
        tcp.close()
        command = f"tstclnt -D -o -h 127.0.0.1 -p {os.environ['PORT']} -V tls{version}:tls{version}"
        self.process = subprocess.Popen(
            command.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def send(self, data):
        self.process.stdin.write(data)

    def receive(self):
        if not (data := self.process.stdout.read(16384)):
            sys.exit("tstclnt ended")
        return data


class Client:
    def __init__(self, stream):
        self.stream, self.received = stream, b""

    def read(self, length):
        while len(self.received) < length:
            self.received += self.stream.receive()
        data, self.received = self.received[:length], self.received[length:]
        return data

    def message(self):
        kind, length = struct.unpack("!cI", self.read(5))
        body = self.read(length - 4)
        if kind == b"E":
            sys.exit(f"the server says {body}")
        return kind, body

    def until(self, wanted):
        messages = []
        while not messages or messages[-1][0] != wanted:
            messages.append(self.message())
        return messages

    def send(self, kind, body):
        self.stream.send(kind + struct.pack("!I", len(body) + 4) + body)

    def query(self, sql):
        self.send(b"Q", sql.encode() + b"\0")
        return [body[6:] for kind, body in self.until(b"Z") if kind == b"D"]


def main():
    library, version = sys.argv[1:]
    tcp = socket.create_connection(("127.0.0.1", int(os.environ["PORT"])))
    stream = {"gnutls": Gnutls, "openssl": Openssl, "nss": Nss}[library](tcp, version)
    updates = 0

    def update(most):
        nonlocal updates
        if version == "1.3" and updates < most:
            stream.update_keys()
            updates += 1

    client = Client(stream)
    names = {"user": os.environ["PGUSER"], "database": os.environ["PGDATABASE"]}
    parameters = b"".join(f"{key}\0{value}\0".encode() for key, value in names.items())
    client.send(b"", struct.pack("!I", 196608) + parameters + b"\0")
    client.until(b"Z")
    for number in range(50):
        update(stream.max_updates // 2)
        assert client.query(f"select {number}") == [str(number).encode()]
    rows = f"select repeat('x', 9000) from generate_series(1, {ROWS})"
    client.send(b"Q", f"copy ({rows}) to stdout\0".encode())
    rows = 0
    while (message := client.message())[0] != b"Z":
        rows += message[0] == b"d"
        if rows % 100 == 50 and message[0] == b"d":
            update(stream.max_updates)
    assert rows == ROWS, rows
    client.query("create temporary table t (v text)")
    client.send(b"Q", b"copy t from stdin\0")
    client.until(b"G")
    for number in range(ROWS):
        client.send(b"d", b"y" * 5000 + b"\n")
        if number % 100 == 50:
            update(stream.max_updates)
    client.send(b"c", b"")
    client.until(b"Z")
    found = client.query("select count(*) from t where v = repeat('y', 5000)")
    assert found == [str(ROWS).encode()], found
    client.send(b"X", b"")
    if library == "nss":
        stream.process.kill()
    print(f"{stream.version}, {updates} key updates asked for")


main()
