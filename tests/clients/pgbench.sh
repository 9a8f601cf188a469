# Do 32 connections survive a minute under load, and then 5 s with a login for each transaction?
# With QUICK=1, it is 5 s and 2 s.
#
# client: pgbench -c 32
# needs: apt /usr/lib/postgresql/*/bin/pgbench:postgresql-contrib
# timeout: 180

pgbench=$(compgen -G '/usr/lib/postgresql/*/bin/pgbench' | sort -V | tail -1)
load=60 logins=5
[[ -z ${QUICK:-} ]] || load=5 logins=2

echo "version: $("$pgbench" --version | sed 's/pgbench (PostgreSQL) \([0-9.]*\).*/\1/')"
"$pgbench" --initialize --scale 10 --quiet

measure() {
    local out
    out=$("$pgbench" --client 32 --jobs 2 --no-vacuum "$@" 2>&1) || { echo "$out"; exit 1; }
    if ! grep -qx 'number of failed transactions: 0 (0.000%)' <<<"$out" ||
        grep -qiE 'error|fatal|aborted' <<<"$out"; then
        echo "$out"
        exit 1
    fi
    sed -n 's/^tps = \([0-9]*\).*/\1/p' <<<"$out"
}

tps=$(measure --time "$load")
logins_per_second=$(measure --time "$logins" --connect --select-only)
echo "note: $load s at $tps transactions/s; $logins_per_second logins/s"
