// Does a socket of Java's own TLS stream through the proxy? With TLS 1.3 and a small
// jdk.tls.keyLimits it asks for a key update with each record that it reads from there until the
// answer comes.

import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.cert.X509Certificate;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

class Jsse {
    static final int ROWS = 1000;

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, new TrustManager[] {new TrustsAll()}, null);
        Socket tcp = new Socket("127.0.0.1", port);
        SSLSocket socket =
                (SSLSocket) context.getSocketFactory().createSocket(tcp, "localhost", port, true);
        socket.setEnabledProtocols(new String[] {arguments[0]});
        socket.startHandshake();
        OutputStream out = socket.getOutputStream();
        DataInputStream in = new DataInputStream(socket.getInputStream());
        ByteArrayOutputStream startup = new ByteArrayOutputStream();
        new DataOutputStream(startup).writeInt(196608);
        for (String text :
                new String[] {
                    "user", System.getenv("PGUSER"), "database", System.getenv("PGDATABASE"), ""
                }) {
            startup.write((text + "\0").getBytes(StandardCharsets.UTF_8));
        }
        out.write(message(0, startup.toByteArray()));
        read(in);
        String copy = "copy (select repeat('x', 8000) from generate_series(1, " + ROWS + ")) to stdout\0";
        for (int round = 0; round < 3; round++) {
            out.write(message('Q', copy.getBytes(StandardCharsets.UTF_8)));
            int rows = read(in);
            if (rows != ROWS) {
                throw new AssertionError(rows + " rows instead of " + ROWS);
            }
        }
        out.write(message('X', new byte[0]));
        System.out.println("Java " + System.getProperty("java.version") + ", " + 3 * ROWS + " rows");
    }

    static byte[] message(int kind, byte[] body) throws Exception {
        ByteArrayOutputStream message = new ByteArrayOutputStream();
        DataOutputStream data = new DataOutputStream(message);
        if (kind != 0) {
            data.writeByte(kind);
        }
        data.writeInt(body.length + 4);
        data.write(body);
        return message.toByteArray();
    }

    /** Reads up to ReadyForQuery, and returns how many CopyData there were. */
    static int read(DataInputStream in) throws Exception {
        for (int rows = 0; ; ) {
            int kind = in.readUnsignedByte();
            byte[] body = new byte[in.readInt() - 4];
            in.readFully(body);
            if (kind == 'E') {
                throw new AssertionError(new String(body, StandardCharsets.UTF_8));
            }
            rows += kind == 'd' ? 1 : 0;
            if (kind == 'Z') {
                return rows;
            }
        }
    }

    static class TrustsAll implements X509TrustManager {
        public void checkClientTrusted(X509Certificate[] chain, String type) {}

        public void checkServerTrusted(X509Certificate[] chain, String type) {}

        public X509Certificate[] getAcceptedIssuers() {
            return new X509Certificate[0];
        }
    }
}
