//! What the ends of connections tell.

use std::error::Error;
use std::io::ErrorKind;

/// The alert of a server that was shown no certificate it takes, somewhere below `error`. In TLS 1.3 it comes after the
/// handshake.
pub(super) fn wants_certificate(error: &hyper::Error) -> Option<String> {
    use rustls::AlertDescription as A;
    let mut below: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = below {
        let io = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        match io.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(
                alert @ (A::CertificateRequired
                | A::UnknownCA
                | A::BadCertificate
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::DecryptError
                | A::AccessDenied),
            )) => return Some(format!("{alert:?}")),
            Some(_) => return None,
            None => below = error.source(),
        }
    }
    None
}

/// Whether the peer closed the connection, in one of the ways in which that comes to light.
pub(super) fn closed(error: &hyper::Error) -> bool {
    let io = Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io.is_some_and(|io| gone(io.kind()))
}

/// So does a peer that closes a connection look.
pub(super) fn gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}
