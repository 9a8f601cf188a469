//! Where does unguessable text for keys, passwords and tokens come from?

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Returns `length` characters of the base64 alphabet, like AWS secrets and Redshift's temporary
/// passwords. Their `+` and `/` reveal missing escapes.
pub fn base64(length: usize) -> String {
    bytes(length)
        .into_iter()
        .map(|byte| char::from(BASE64[usize::from(byte) % BASE64.len()]))
        .collect()
}

/// Returns `length` upper-case letters and digits, as in access key IDs.
pub fn identifier(length: usize) -> String {
    bytes(length)
        .into_iter()
        .map(|byte| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(byte) % 32]))
        .collect()
}

pub fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source works");
    bytes
}
