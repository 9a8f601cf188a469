//! How are password challenges answered that take no second round? These are cleartext, MD5 and
//! Redshift's digest.

use aws_lc_rs::digest;
use postgres_protocol::authentication::md5_hash;

use crate::random;
use crate::secret::Secret;
use crate::wire::frontend::{password_message, redshift_digest_response};

/// The longest password that PostgreSQL reads, in bytes (`PG_MAX_AUTH_TOKEN_LENGTH`).
pub const MAX_SERVER_PASSWORD_BYTES: usize = 65_535;

/// Answers `AuthenticationCleartextPassword`.
pub fn cleartext(password: &Secret) -> Secret {
    password_message(password.expose())
}

/// Answers `AuthenticationMD5Password`. `user` must be the user of the startup message, byte for
/// byte.
pub fn md5(user: &str, password: &Secret, salt: [u8; 4]) -> Secret {
    password_message(md5_hash(user.as_bytes(), password.expose(), salt).as_bytes())
}

/// Answers Redshift's digest request with SHA-256: `SHA256(SHA256(password ‖ salt) ‖ server nonce ‖
/// client nonce)`. The user name is not an input, whatever the comments in Amazon's drivers say.
pub fn redshift_digest(password: &Secret, salt: &[u8], server_nonce: &[u8]) -> Secret {
    let client_nonce: [u8; 16] = random::bytes();
    redshift_digest_response(
        &sha256(&[
            &sha256(&[password.expose(), salt]),
            server_nonce,
            &client_nonce,
        ]),
        &client_nonce,
    )
}

fn sha256(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}
