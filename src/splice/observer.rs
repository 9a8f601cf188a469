//! Who may look at the bytes of a session while they pass.

/// Sees the bytes of a session as they pass.
#[expect(
    clippy::wrong_self_convention,
    reason = "from says where the bytes come from"
)]
pub trait Observer {
    /// Bytes from the client, before they are sent. How many of them are for the server: fewer than
    /// all of them means that the client has said goodbye there. From then on none are, and it is
    /// shown what the client still sends.
    fn from_client(&mut self, bytes: &[u8]) -> usize;

    /// Bytes from the server, before they are sent on.
    fn from_server(&mut self, bytes: &[u8]);
}

/// Nobody looks.
impl Observer for () {
    fn from_client(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn from_server(&mut self, _: &[u8]) {}
}
