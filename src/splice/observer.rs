//! Who may look at the bytes of a session while they pass?

/// Looks at the bytes of a session while they pass. It cannot change them.
pub trait Observer {
    /// Is shown bytes that the client has sent, before they are sent on, and returns how many of
    /// them are for the server.
    ///
    /// Fewer than all of them means that a `Terminate` begins behind those, with which the client
    /// ends its session. From then on nothing is sent to the server any more, and the observer is
    /// shown whatever else the client sends.
    fn client_sent(&mut self, bytes: &[u8]) -> usize;

    /// Is shown bytes that the server has sent, before they are sent on.
    fn server_sent(&mut self, bytes: &[u8]);
}

/// Sessions that nobody observes.
impl Observer for () {
    fn client_sent(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn server_sent(&mut self, _: &[u8]) {}
}
