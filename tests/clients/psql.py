"""Does psql work, with its own COPY and with Ctrl-C typed at a terminal?

client: psql
needs: apt psql:postgresql-client
logins: trust scram md5 password
"""

import os
import pty
import re
import select
import subprocess
import tempfile
import time

from dbapi import ROWS, SLEEP, equal

PSQL = ["psql", "-X", "-A", "-t", "-q", "-P", "pager=off"]


def psql(*statements, **options):
    arguments = [argument for statement in statements for argument in ("-c", statement)]
    return subprocess.run([*PSQL, *arguments], capture_output=True, text=True, **options)


def main():
    print(
        "version:",
        subprocess.check_output(["psql", "--version"], text=True)
        .split("(Debian")[0]
        .strip()
        .removeprefix("psql (PostgreSQL) "),
    )
    equal(psql("select current_user").stdout.strip(), os.environ["EXPECTED_USER"])
    parameters()
    copy()
    error()
    ctrl_c()


def parameters():
    script = r"select :'text' || :number" + "\n"
    found = subprocess.run(
        [*PSQL, "-v", "text=it's ", "-v", "number=42"], input=script, capture_output=True, text=True
    )
    equal(found.stdout.strip(), "it's 42")


def copy():
    with tempfile.TemporaryDirectory() as directory:
        rows, out = f"{directory}/rows", f"{directory}/out"
        with open(rows, "w") as file:
            file.writelines(f"{number}\t{'x' * 150}\n" for number in range(ROWS))
        done = psql(
            "create temporary table clients_rows (number integer, text varchar(200))",
            rf"\copy clients_rows from '{rows}'",
            rf"\copy (select * from clients_rows order by number) to '{out}'",
        )
        equal((done.returncode, done.stderr), (0, ""))
        equal(open(out).read(), open(rows).read())


def error():
    done = psql("select 1/0", "select 2")
    equal((done.stdout.strip(), done.stderr.strip()), ("2", "ERROR:  division by zero"))


def ctrl_c():
    """The terminal turns Ctrl-C into a SIGINT, as it does for a person."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(PSQL[0], [*PSQL, "--no-readline", "-v", "VERBOSITY=verbose"])
    os.write(terminal, f"{SLEEP};\n".encode())
    read_until(terminal, "NOTICE:.*begun")
    os.write(terminal, b"\x03")
    read_until(terminal, "ERROR: +57014.*canceling statement due to user request")
    os.write(terminal, b"select 'still' || ' here';\n")
    read_until(terminal, "still here")
    os.write(terminal, b"\\q\n")
    equal(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
    print("note: COPY, Ctrl-C")


def read_until(terminal, pattern):
    seen, deadline = "", time.monotonic() + 20
    while not re.search(pattern, seen):
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{pattern} did not come: {seen}"
        seen += os.read(terminal, 4096).decode()


main()
