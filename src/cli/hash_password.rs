//! How does a password become the verifier that a configuration holds? `pg-iam-proxy hash-password`
//! prints it.

use std::io::{self, BufRead, IsTerminal};

use crate::random;
use crate::secret::Secret;
use crate::verifier::{DEFAULT_ITERATIONS, SALT_LENGTH, ScramVerifier};
use crate::wire::password::{MAX_CLIENT_PASSWORD_BYTES, check_password};

/// Prompts for a password, twice and without echo, where standard input is a terminal. Otherwise
/// the password is the first line of standard input.
///
/// # Errors
/// When there is no password, the two differ, or no client could send it.
pub fn run() -> io::Result<String> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        prompt_twice()?
    } else {
        read_line(stdin.lock())?
    };
    verifier(&password)
}

fn prompt_twice() -> io::Result<Secret> {
    let first = Secret::new(rpassword::prompt_password("Password: ")?);
    let second = Secret::new(rpassword::prompt_password("Again: ")?);
    if first == second {
        Ok(first)
    } else {
        Err(io::Error::other("the two passwords differ"))
    }
}

fn read_line(input: impl BufRead) -> io::Result<Secret> {
    let mut line = Vec::new();
    // This has room for one byte too many, from which its excess is seen, and for the end of the
    // line.
    input
        .take(MAX_CLIENT_PASSWORD_BYTES as u64 + 3)
        .read_until(b'\n', &mut line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        // A file from Windows ends its lines with both.
        line.pop_if(|last| *last == b'\r');
    }
    Ok(Secret::new(line))
}

fn verifier(password: &Secret) -> io::Result<String> {
    let password = password.expose();
    check_password(password).map_err(io::Error::other)?;
    let salt = random::bytes::<SALT_LENGTH>().to_vec();
    Ok(ScramVerifier::from_password(password, DEFAULT_ITERATIONS, salt).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::Verifier;

    fn hashed(input: &[u8]) -> Result<ScramVerifier, String> {
        let text = read_line(input)
            .and_then(|password| verifier(&password))
            .map_err(|error| error.to_string())?;
        match Verifier::parse(&text) {
            Ok(Verifier::Scram(verifier)) => Ok(verifier),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_line_becomes_a_verifier() {
        for input in [
            &b"pencil"[..],
            b"pencil\n",
            b"pencil\r\n",
            b"pencil\nmore\n",
        ] {
            let verifier = hashed(input).unwrap();
            assert!(verifier.matches(b"pencil"), "{input:?}");
            assert_eq!((verifier.iterations.get(), verifier.salt.len()), (4096, 16));
        }
        assert!(
            hashed(b" pen cil \xff\r")
                .unwrap()
                .matches(b" pen cil \xff\r")
        );
        assert_ne!(
            hashed(b"pencil").unwrap().salt,
            hashed(b"pencil").unwrap().salt
        );
    }

    #[test]
    fn passwords_that_no_client_can_send_are_refused() {
        for input in [&b""[..], b"\n", b"\r\n"] {
            assert_eq!(
                hashed(input).unwrap_err(),
                "the password is empty: libpq takes an empty password for none"
            );
        }
        assert_eq!(
            hashed(b"a\0b").unwrap_err(),
            "the password has a NUL in it, which no client can send"
        );
        assert!(hashed(&vec![b'x'; MAX_CLIENT_PASSWORD_BYTES]).is_ok());
        assert_eq!(
            hashed(&vec![b'x'; MAX_CLIENT_PASSWORD_BYTES + 1]).unwrap_err(),
            "the password is longer than a client can send"
        );
        assert_eq!(
            hashed(&vec![b'x'; 100_000]).unwrap_err(),
            "the password is longer than a client can send"
        );
    }
}
