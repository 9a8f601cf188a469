//! What must hold for any bytes that a peer can send or a file can hold? Each fuzz target has a function here, which
//! panics where an invariant is broken.

mod backend_message;
mod cancel_key;
mod configuration;
mod idle_tracker;
mod password_message;
mod proxy_header;
mod record_layer;
mod scram;
mod scram_login;
mod startup_packet;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, Chain};

pub use backend_message::backend_message;
pub use cancel_key::cancel_key;
pub use configuration::{configuration, target_url, users_file};
pub use idle_tracker::idle_tracker;
pub use password_message::password_message;
pub use proxy_header::proxy_header;
pub use record_layer::record_layer;
pub use scram::scram;
pub use scram_login::scram_login;
pub use startup_packet::startup_packet;

/// Polls a future that reads from memory, which is never pending.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a read from memory is pending"),
    }
}

/// The same bytes as they come when the network cuts them at `at`, where a read ends.
fn cut(data: &[u8], at: usize) -> Chain<&[u8], &[u8]> {
    let (first, second) = data.split_at(at);
    first.chain(second)
}

/// Whether `part` lies in `whole`, so that it has not been copied. An empty one lies anywhere.
fn is_slice_of(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    part.is_empty() || (whole.start <= part.start && part.end <= whole.end)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn seeds_hold_the_invariants() {
        let targets = [
            ("startup_packet", super::startup_packet as fn(&[u8])),
            ("backend_message", super::backend_message),
            ("cancel_key", super::cancel_key),
            ("idle_tracker", super::idle_tracker),
            ("password_message", super::password_message),
            ("proxy_header", super::proxy_header),
            ("record_layer", super::record_layer),
            ("scram", super::scram),
            ("scram_login", super::scram_login),
            ("configuration", super::configuration),
            ("target_url", super::target_url),
            ("users_file", super::users_file),
        ];
        for (name, target) in targets {
            let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("seeds")
                .join(name);
            let mut count = 0;
            for seed in seeds.read_dir().expect("seeds are committed") {
                let data = std::fs::read(seed.expect("a seed").path()).expect("a seed is a file");
                // A peer that closes early has sent a prefix.
                (0..=data.len()).for_each(|end| target(&data[..end]));
                count += 1;
            }
            assert!(count > 0, "{name} has no seeds");
        }
    }
}
