//! What may a session still hold after `DISCARD ALL`? One query tells, and is asked before the
//! session gets another client.
//!
//! Extensions in C may keep values in variables of the server process, which no statement takes
//! away: `dbms_output` of orafce, hypothetical indexes of hypopg, `isn_weak()`, the connections of
//! dblink and of foreign data wrappers. So do procedural languages. An extension is therefore
//! trusted only if it is known to keep nothing, or if the configuration vouches for it; elsewhere a
//! new one would be a leak until somebody notices it.
//!
//! From PostgreSQL 18 on a server tells which libraries a session has loaded. An extension whose
//! library it has not loaded has kept nothing, whatever it is.

use postgres_protocol::escape::escape_literal;

/// The release from which on there is `pg_get_loaded_modules()`.
const TELLS_LOADED_MODULES: u32 = 18;

/// Extensions that keep nothing that another client could notice. Types, operators, index methods,
/// dictionaries and triggers do not; inspection reads the server's state and `pg_stat_statements`
/// keeps its own for all sessions together; what `set_limit()` and their like change are settings.
///
/// Left out on purpose, besides what the top of this file names: `hll` (`hll_set_defaults`),
/// `postgis` (caches projections, which an uncommitted change can falsify), `refint` (caches plans),
/// `xml2` (changes what libxml does).
const KEEP_NOTHING: [&str; 47] = [
    "amcheck",
    "autoinc",
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "file_fdw",
    "fuzzystrmatch",
    "hstore",
    "insert_username",
    "intagg",
    "intarray",
    "ip4r",
    "lo",
    "ltree",
    "moddatetime",
    "old_snapshot",
    "pageinspect",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_logicalinspect",
    "pg_partman",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_surgery",
    "pg_trgm",
    "pg_visibility",
    "pg_walinspect",
    "pgaudit",
    "pgcrypto",
    "pgrowlocks",
    "pgstattuple",
    "plpgsql",
    "prefix",
    "seg",
    "sslinfo",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
    "vector",
];

/// The library of a C function, as `pg_proc.probin` names it, compared with those that are loaded.
const IS_LOADED: &str = "EXISTS (SELECT FROM pg_catalog.pg_depend d \
     JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) d.objid \
     JOIN pg_catalog.pg_get_loaded_modules() m \
     ON pg_catalog.regexp_replace(m.file_name, '[.][a-z]+$', '') OPERATOR(pg_catalog.=) \
     pg_catalog.regexp_replace(p.probin, '^.*/|[.][a-z]+$', '', 'g') \
     WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
     AND d.refobjid OPERATOR(pg_catalog.=) e.oid)";

const TEMPORARY_SLOTS: &str = "SELECT 'temporary replication slot ', s.slot_name \
     FROM pg_catalog.pg_get_replication_slots() s \
     WHERE s.temporary AND s.active_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()";

/// Where there are replication origins, whoever may name one for the session, by himself or with
/// `SET ROLE`, may have done so. The server says whether, but only to those who may ask; where it
/// does not say, the answer is yes. The queries are within the query because the server judges that
/// before a query runs, and because they are rarely needed and always would be planned.
const REPLICATION_ORIGIN: &str = "SELECT 'replication origin', ''::pg_catalog.name \
     WHERE EXISTS (SELECT FROM pg_catalog.pg_replication_origin) \
     AND pg_catalog.strpos(pg_catalog.query_to_xml(CASE \
     WHEN pg_catalog.has_function_privilege(\
     'pg_catalog.pg_replication_origin_session_is_setup()', 'EXECUTE') \
     THEN 'SELECT pg_catalog.pg_replication_origin_session_is_setup()' \
     ELSE 'SELECT EXISTS (SELECT \
     FROM pg_catalog.pg_proc p, LATERAL pg_catalog.aclexplode(p.proacl) granted \
     WHERE p.oid OPERATOR(pg_catalog.=) ''pg_catalog.pg_replication_origin_session_setup(\
     pg_catalog.text)''::pg_catalog.regprocedure \
     AND (granted.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
     OR pg_catalog.pg_has_role(session_user, granted.grantee, ''MEMBER'')))' \
     END, false, false, '')::pg_catalog.text, '>true<') OPERATOR(pg_catalog.>) 0";

/// A query whose only row names what the session may still hold, and is empty if that is nothing.
/// `vouched_for` are further extensions that keep nothing.
///
/// All names and operators are qualified, because the session's `search_path` may lead to others of
/// the same name.
pub fn query(server_version: Option<&[u8]>, vouched_for: &[String]) -> String {
    let vouched_for: Vec<_> = vouched_for.iter().map(String::as_str).collect();
    let extensions = name_array(&[&KEEP_NOTHING, &vouched_for]);
    let languages = name_array(&[&["internal", "c", "sql", "plpgsql"], &vouched_for]);
    let and_is_loaded = if major(server_version) >= Some(TELLS_LOADED_MODULES) {
        format!(" AND {IS_LOADED}")
    } else {
        String::new()
    };
    format!(
        "SELECT pg_catalog.concat(pg_catalog.string_agg(\
         pg_catalog.concat(kept.kind, kept.name), ', ')) FROM (\
         SELECT 'extension ', e.extname FROM pg_catalog.pg_extension e \
         WHERE e.extname OPERATOR(pg_catalog.<>) ALL ({extensions}){and_is_loaded} \
         UNION ALL SELECT 'language ', l.lanname FROM pg_catalog.pg_language l \
         WHERE l.lanname OPERATOR(pg_catalog.<>) ALL ({languages}) \
         UNION ALL {TEMPORARY_SLOTS} UNION ALL {REPLICATION_ORIGIN}) kept (kind, name)"
    )
}

/// An array as one literal, because a list of literals takes the server twice as long to read.
fn name_array(parts: &[&[&str]]) -> String {
    let names: Vec<_> = parts
        .concat()
        .iter()
        .map(|name| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    let array = format!("{{{}}}", names.join(","));
    format!("{}::pg_catalog.name[]", escape_literal(&array).trim_start())
}

/// The major release, as in `18.1` and `18beta1`.
fn major(server_version: Option<&[u8]>) -> Option<u32> {
    let version = std::str::from_utf8(server_version?).ok()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_can_tell_are_asked_what_is_loaded() {
        for (version, asked) in [
            (None, false),
            (Some("15.14 (Debian 15.14-0+deb12u1)"), false),
            (Some("9.6.24"), false),
            (Some(""), false),
            (Some("18.1"), true),
            (Some("18beta1"), true),
            (Some("20"), true),
        ] {
            let query = query(version.map(str::as_bytes), &[]);
            assert_eq!(
                query.contains("pg_get_loaded_modules"),
                asked,
                "{version:?}"
            );
        }
    }

    #[test]
    fn names_from_the_configuration_stay_names() {
        let names = ["it's", r"post\gis", r#"a","b"#];
        assert_eq!(
            name_array(&[&names]),
            r#"E'{"it''s","post\\\\gis","a\\",\\"b"}'::pg_catalog.name[]"#
        );
    }
}
