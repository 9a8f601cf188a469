// Does the usual driver of Node.js work?
//
// client: node-postgres
// needs: apt node:nodejs npm:npm
// needs: npm pg@8.23.1
// logins: trust scram md5 password

const assert = require("node:assert");
const { once } = require("node:events");
const { readFileSync } = require("node:fs");
const pg = require("pg");

const ROWS = 3000;
const SLEEP = "do $$ begin raise notice 'begun'; perform pg_sleep(30); end $$";

async function main() {
  const { PGSSLMODE, PGSSLROOTCERT } = process.env;
  const ssl = PGSSLMODE === "verify-full" && { ca: readFileSync(PGSSLROOTCERT) };
  const client = new pg.Client({ ssl, enableChannelBinding: true });
  await client.connect();
  console.log(`version: ${require("pg/package.json").version}, Node.js ${process.versions.node}`);
  assert.equal(await one(client, "select current_user"), process.env.EXPECTED_USER);
  assert.equal(await one(client, "select cast($1 as integer) + 1", [41]), 42);
  await manyRows(client);
  await assert.rejects(client.query("select 1/0"), { code: "22012" });
  assert.equal(await one(client, "select 2"), 2);
  await cancel(client);
  await client.end();
}

async function one(client, text, values) {
  const { rows } = await client.query({ text, values, rowMode: "array" });
  return rows[0][0];
}

async function manyRows(client) {
  await client.query("create temporary table clients_rows (number integer, text varchar(200))");
  for (let number = 0; number < ROWS; number++) {
    await client.query({
      name: "insert",
      text: "insert into clients_rows values ($1, $2)",
      values: [number, "x".repeat(150)],
    });
  }
  const { rows } = await client.query("select number from clients_rows order by number");
  assert.deepEqual(rows.map((row) => row.number), [...Array(ROWS).keys()]);
}

// The driver opens another connection to cancel the query that is running.
async function cancel(client) {
  const query = new pg.Query(SLEEP);
  const ended = new Promise((resolve) => {
    query.on("error", resolve).on("end", () => resolve({ code: "no error" }));
  });
  client.query(query);
  await once(client, "notice");
  // Over TLS, the driver would wait forever before it sends the request.
  new pg.Client({ ssl: false }).cancel(client, query);
  assert.equal((await ended).code, "57014");
  assert.equal(await one(client, "select 3"), 3);
  console.log("note: named statements, cancel");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
