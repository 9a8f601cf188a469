# What does OpenSSL see of TLS: versions, names, ALPN, and a handshake without an SSLRequest?
#
# client: openssl s_client
# needs: apt openssl:openssl
# logins: scram

echo "version: $(openssl version | cut -d' ' -f2)"

# Prints what OpenSSL says about a connection to the listener with these options.
connected() {
    openssl s_client -connect "$PGHOST:$PGPORT" -servername "$PGHOST" -CAfile "$PGSSLROOTCERT" \
        -verify_return_error -verify_hostname "$PGHOST" "$@" </dev/null 2>&1
}
has() {
    grep -q -e "$1" <<<"$out" || { printf '%s\nnot there: %s\n' "$out" "$1"; exit 1; }
}

for version in 1.2 1.3; do
    out=$(connected -starttls postgres "-tls${version/./_}" -alpn postgresql)
    has "New, TLSv$version"
    has 'Verify return code: 0 (ok)'
    has 'ALPN protocol: postgresql'
done
out=$(connected -alpn postgresql)
has 'ALPN protocol: postgresql'

# With SECLEVEL=0, OpenSSL itself would allow these versions, so it is the proxy that refuses.
for version in 1 1_1; do
    out=$(connected -starttls postgres "-tls$version" -cipher DEFAULT@SECLEVEL=0 || true)
    has 'alert \(protocol version\|handshake failure\)'
done
out=$(connected -alpn http/1.1 || true)
has 'alert no application protocol'
echo "note: TLS 1.2 and 1.3, verified, ALPN, direct; TLS 1.0, 1.1 and HTTP refused"
