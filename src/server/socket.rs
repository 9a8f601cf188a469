//! A listening socket, on the network or in the file system.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, UnixListener};

use crate::config::{Address, Auth, Listener};
use crate::session::Accepted;

/// Silence after which the kernel probes whether a client is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// A bound socket.
pub(super) enum Socket {
    Tcp(TcpListener),
    /// With the file that goes with it when it is dropped.
    Unix(UnixListener, SocketFile),
}

pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it before us has done our work.
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    pub(super) async fn bind(listener: &Listener) -> io::Result<Self> {
        match &listener.address {
            Address::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => {
                remove_stale(path)?;
                let socket = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                // Where nobody has to prove anything, only our own user may connect.
                let open = listener.rules.iter().all(|rule| rule.auth != Auth::Trust);
                fs::set_permissions(path, Permissions::from_mode(if open { 0o777 } else { 0o700 }))?;
                Ok(Self::Unix(socket, file))
            }
        }
    }

    /// The address as bound.
    pub(super) fn address(&self) -> Option<Address> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok().map(Address::Tcp),
            Self::Unix(_, file) => Some(Address::Unix(file.0.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                let options = SockRef::from(&stream);
                // Neither option is worth a login when the kernel refuses it.
                let _ = options.set_tcp_nodelay(true);
                let _ = options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
                Ok(Accepted::Tcp(stream, peer))
            }
            Self::Unix(socket, _) => {
                let (stream, _) = socket.accept().await?;
                let user = stream.peer_cred()?.uid();
                Ok(Accepted::Unix(stream, user))
            }
        }
    }
}

/// Removes a socket that a process left behind when it died, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => fs::remove_file(path),
        },
        _ => Ok(()),
    }
}
