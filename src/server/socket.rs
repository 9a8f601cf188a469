//! How does the proxy listen, on the network or in the file system?

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, UnixListener};

use crate::address::ListenerAddr;
use crate::config::{Auth, ListenerSettings};
use crate::random;
use crate::session::Accepted;

/// How long a client may be silent before the kernel probes whether it is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// How many clients may wait to be accepted. More of them may come at once after an outage than the
/// 128 of the standard library, and one that finds the queue full waits for a second. The kernel has
/// a limit of its own, `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A bound socket.
pub(super) enum Socket {
    Tcp(TcpListener),
    /// The socket and its file, which is removed when it is dropped.
    Unix(UnixListener, SocketFile),
}

pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If the file is gone already, there is nothing left to do.
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    pub(super) async fn bind(listener: &ListenerSettings) -> io::Result<Self> {
        match &listener.address {
            ListenerAddr::Tcp(address) => {
                let socket = TcpListener::bind(address).await?;
                let options = SockRef::from(&socket);
                options.listen(BACKLOG)?;
                // Accepted connections inherit both options. Neither is worth refusing service for
                // when the kernel does not support it.
                let _ = options.set_tcp_nodelay(true);
                let _ = options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
                Ok(Self::Tcp(socket))
            }
            ListenerAddr::Unix(path) => {
                remove_stale(path)?;
                // If a rule trusts clients without authentication, only our own operating system
                // user may connect.
                let open = listener.rules.iter().all(|rule| rule.auth != Auth::Trust);
                let socket = bind_with_mode(path, if open { 0o777 } else { 0o700 })?;
                let file = SocketFile(path.clone());
                SockRef::from(&socket).listen(BACKLOG)?;
                Ok(Self::Unix(socket, file))
            }
        }
    }

    /// The address that was bound.
    pub(super) fn address(&self) -> Option<ListenerAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok().map(ListenerAddr::Tcp),
            Self::Unix(_, file) => Some(ListenerAddr::Unix(file.0.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
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

/// Binds the socket in a directory that no one else can enter and then moves it into place, so that
/// there is no moment at which the umask decides who may connect.
///
/// The directory has a name that nobody knows before: in `/tmp`, another user could otherwise take
/// it, and one that a killed process has left behind would be in the way.
fn bind_with_mode(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let name = format!(".{:08x}", u32::from_be_bytes(random::bytes()));
    let folder = path.with_file_name(name);
    DirBuilder::new().mode(0o700).create(&folder)?;
    let bound = folder.join("s");
    let socket = UnixListener::bind(&bound)
        .and_then(|socket| {
            fs::set_permissions(&bound, Permissions::from_mode(mode)).map(|()| socket)
        })
        .and_then(|socket| fs::rename(&bound, path).map(|()| socket));
    fs::remove_dir_all(&folder)?;
    socket
}

/// Removes a socket that a dead process left behind, and nothing else: a file of another kind at
/// this path is somebody's data, over which the new socket must not be moved.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => fs::remove_file(path),
        },
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is not a socket",
        )),
        Err(_) => Ok(()),
    }
}
