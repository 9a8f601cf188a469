//! Which certificates does a TLS listener show and trust? They are in files that a test may
//! replace.

use super::pki::{Authority, Identity};
use super::tls_client::TlsClient;

/// A folder with the certificate and key of a listener, and the authority that signed them.
pub struct TlsFiles {
    folder: tempfile::TempDir,
    pub authority: Authority,
}

impl TlsFiles {
    pub fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::new("server CA"),
        };
        files.write("server-ca.pem", &files.authority.certificate);
        files.write_pair(&files.authority.server());
        files
    }

    /// Writes a file in one step, so that a proxy never reads half of it, and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let (path, new) = (
            self.folder.path().join(name),
            self.folder.path().join("new"),
        );
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
        path.display().to_string()
    }

    pub fn write_pair(&self, identity: &Identity) {
        self.write("server.pem", &identity.certificate);
        self.write("server.key", &identity.key);
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The lines that a listener needs in the configuration file to speak TLS with these files.
    pub fn keys(&self, tls: &str) -> String {
        format!(
            "tls = \"{tls}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
            self.path("server.pem"),
            self.path("server.key")
        )
    }

    pub fn client(&self) -> TlsClient {
        TlsClient::trusting(&self.authority.certificate)
    }
}
