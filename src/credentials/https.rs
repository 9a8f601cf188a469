//! With which authorities does the SDK verify AWS's endpoints?

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;

/// Has the SDK read the certificates of the system's authorities.
///
/// It reads them once, for its first connection, and keeps what it gets. If that moment came when
/// the process was out of file descriptors, it would trust nobody until the process ends.
pub fn read_system_authorities() {
    drop(
        Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .build(),
    );
}
