// Does PostgreSQL's JDBC driver work?
//
// client: pgjdbc
// logins: trust scram md5 password
// needs: apt java:default-jre-headless javac:default-jdk-headless libpostgresql-jdbc-java

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

class Pgjdbc {
    static final int ROWS = 3000;

    public static void main(String[] arguments) throws Exception {
        String server = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        String url = "jdbc:postgresql://" + server + "/" + System.getenv("PGDATABASE");
        try (Connection connection = DriverManager.getConnection(url, settings())) {
            System.out.println("version: " + connection.getMetaData().getDriverVersion());
            equal(one(connection, "select current_user"), System.getenv("EXPECTED_USER"));
            parameters(connection);
            manyRows(connection);
            fails(connection, "select 1/0", "22012");
            equal(one(connection, "select 2"), 2);
            cancel(connection);
        }
    }

    static Properties settings() {
        Properties settings = new Properties();
        Map.of(
                        "user", "PGUSER",
                        "password", "PGPASSWORD",
                        "sslmode", "PGSSLMODE",
                        "sslrootcert", "PGSSLROOTCERT")
                .forEach(
                        (key, variable) ->
                                Optional.ofNullable(System.getenv(variable))
                                        .ifPresent(value -> settings.put(key, value)));
        return settings;
    }

    static Object one(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery(query)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    /** Often enough for the driver to change to a named statement on the server. */
    static void parameters(Connection connection) throws SQLException {
        try (PreparedStatement statement =
                connection.prepareStatement("select cast(? as integer) + 1")) {
            for (int number = 0; number < 10; number++) {
                statement.setInt(1, number);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    equal(rows.getInt(1), number + 1);
                }
            }
        }
    }

    static void manyRows(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.execute(
                    "create temporary table clients_rows (number integer, text varchar(200))");
        }
        try (PreparedStatement insert =
                connection.prepareStatement("insert into clients_rows values (?, ?)")) {
            for (int number = 0; number < ROWS; number++) {
                insert.setInt(1, number);
                insert.setString(2, "x".repeat(150));
                insert.addBatch();
            }
            insert.executeBatch();
        }
        int seen = 0;
        try (Statement statement = connection.createStatement()) {
            // With a fetch size, the driver fetches from the same portal again and again.
            statement.setFetchSize(100);
            try (ResultSet rows =
                    statement.executeQuery("select number from clients_rows order by number")) {
                while (rows.next()) {
                    equal(rows.getInt(1), seen++);
                }
            }
        }
        equal(seen, ROWS);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void fails(Connection connection, String query, String sqlState) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(query);
        } catch (SQLException error) {
            equal(error.getSQLState(), sqlState);
            return;
        }
        throw new AssertionError(query + " did not fail");
    }

    /**
     * A cancel request has no effect before the query has begun, so it is sent until the query
     * ends.
     */
    static void cancel(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            CompletableFuture<SQLException> query = CompletableFuture.supplyAsync(() -> {
                try {
                    statement.execute("select pg_sleep(30)");
                    return null;
                } catch (SQLException error) {
                    return error;
                }
            });
            SQLException error = null;
            for (boolean ended = false; !ended; ) {
                statement.cancel();
                try {
                    error = query.get(100, TimeUnit.MILLISECONDS);
                    ended = true;
                } catch (TimeoutException goOn) {
                }
            }
            equal(error == null ? "no error" : error.getSQLState(), "57014");
        }
        equal(one(connection, "select 3"), 3);
        System.out.println("note: named statements, portals, cancel");
    }

    static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError(found + " instead of " + expected);
        }
    }
}
