//! Which messages do the backend and the load exchange?

pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
pub const READY: [u8; 6] = *b"Z\0\0\0\x05I";
pub const TERMINATE: [u8; 5] = *b"X\0\0\0\x04";
pub const COPY_DONE: [u8; 5] = *b"c\0\0\0\x04";
/// The size of one CopyData message. PostgreSQL sends one for each row, and this is a wide one.
pub const ROW: usize = 8 * 1024;

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4)
        .expect("messages are short")
        .to_be_bytes();
    [&[kind][..], &length, body].concat()
}

pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0database\0{database}\0client_encoding\0UTF8\0\0");
    let length = u32::try_from(body.len() + 8)
        .expect("it is short")
        .to_be_bytes();
    [&length[..], &[0, 3, 0, 0], body.as_bytes()].concat()
}

pub fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

/// The messages from AuthenticationOk to ReadyForQuery, with the settings that PostgreSQL reports.
pub fn greeting() -> Vec<u8> {
    let settings = [
        ("application_name", ""),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("default_transaction_read_only", "off"),
        ("in_hot_standby", "off"),
        ("integer_datetimes", "on"),
        ("IntervalStyle", "postgres"),
        ("is_superuser", "off"),
        ("server_encoding", "UTF8"),
        ("server_version", "15.14"),
        ("session_authorization", "bench"),
        ("standard_conforming_strings", "on"),
        ("TimeZone", "UTC"),
    ];
    let mut bytes = message(b'R', &[0, 0, 0, 0]);
    for (name, value) in settings {
        bytes.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    bytes.extend(message(b'K', &[0, 0, 0x10, 1, 1, 2, 3, 4]));
    bytes.extend(READY);
    bytes
}

/// The answer to these statements. Each `select` returns one row with the number 1; with an empty
/// text if it lists what a session keeps, as a proxy does after it has reset one, or with true if it
/// asks whether something exists, as earlier builds did. Any other statement succeeds.
pub fn answer(statements: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for statement in statements
        .split(';')
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
    {
        let words: Vec<String> = statement
            .split_whitespace()
            .take(2)
            .map(str::to_uppercase)
            .collect();
        if words[0] == "SELECT" {
            let value: &[u8] = if statement.contains("string_agg") {
                b""
            } else if statement.contains("EXISTS") {
                b"t"
            } else {
                b"1"
            };
            bytes.extend(message(
                b'T',
                b"\0\x01?column?\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
            ));
            let length = u8::try_from(value.len()).expect("a byte or none");
            bytes.extend(message(b'D', &[&[0, 1, 0, 0, 0, length], value].concat()));
            bytes.extend(message(b'C', b"SELECT 1\0"));
        } else {
            bytes.extend(message(b'C', format!("{}\0", words.join(" ")).as_bytes()));
        }
    }
    bytes.extend(READY);
    bytes
}

/// A CommandComplete and a ReadyForQuery.
pub fn complete(tag: &str) -> Vec<u8> {
    [message(b'C', format!("{tag}\0").as_bytes()), READY.to_vec()].concat()
}

/// CopyData messages of about this many bytes in total.
pub fn rows(bytes: usize) -> Vec<u8> {
    let mut line = [b'x'; ROW];
    line[ROW - 1] = b'\n';
    let row = message(b'd', &line);
    row.repeat((bytes / ROW).max(1))
}
