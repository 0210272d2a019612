//! What an error from etcd means: positively not done, or possibly done.
//!
//! Only etcd's own words count as a "no": a status whose text etcd wrote, or a connection that was never made. Any other
//! end of a request (a reset, a timeout, a proxy's opinion, an answer that cannot be decoded) may have come after etcd
//! carried it out, and is `Unknown`.

use etcd_client::Error;
use std::error::Error as _;
use std::io::ErrorKind;
use tonic::{Code, ConnectError, Status};

/// How one attempt at one endpoint failed. The text is the reason alone; the caller adds the endpoint.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection was made, so nothing was sent.
    Unreachable(String),
    /// etcd says that it is too busy to begin anything now.
    NotNow(String),
    /// It may have happened, or may yet.
    Unknown(String),
    /// What answers belongs to another etcd cluster than what answered before. It may have done it.
    OtherCluster(String),
    /// What answers is not an etcd.
    Foreign(String),
    /// etcd says that it did not do it and why.
    Refused(String),
    /// Its database is full. It may have carried a transaction out all the same: see [`super::Etcd::settle`].
    NoSpace(String),
    /// It did not, because the lease is gone.
    LeaseGone,
    /// A watch is to begin after this revision, which is the newest there is: etcd was put back to an earlier state.
    Rewound(i64),
}

pub(super) fn classify(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => classify_status(status),
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Failure::Refused(error.to_string())
        }
        Error::TransportError(e) => Failure::Unreachable(root_cause(e)),
        other => Failure::Unknown(other.to_string()),
    }
}

fn classify_status(status: &Status) -> Failure {
    if never_connected(status) {
        return Failure::Unreachable(connect_advice(&root_cause(status), was_hung_up(status)));
    }
    let text = status.message();
    if let Some(words) = text.strip_prefix("etcdserver: ") {
        return classify_words(status.code(), words);
    }
    // The server's gRPC layer refuses what is larger than etcd's limit before etcd sees it.
    if status.code() == Code::ResourceExhausted && text.starts_with("grpc: received message larger than max") {
        return Failure::Refused("the request is larger than its --max-request-bytes".into());
    }
    if is_foreign(status) {
        return Failure::Foreign(text.into());
    }
    Failure::Unknown(if text.is_empty() { root_cause(status) } else { text.into() })
}

fn classify_words(code: Code, words: &str) -> Failure {
    match (code, words) {
        // Said before anything is proposed.
        (Code::ResourceExhausted, "too many requests") => Failure::NotNow("it is too busy".into()),
        (Code::ResourceExhausted, "mvcc: database space exceeded") => Failure::NoSpace(
            "no space: its database has reached its quota. Compact and defragment it, then `etcdctl alarm disarm`, or \
             raise --quota-backend-bytes"
                .into(),
        ),
        (Code::PermissionDenied, _) => Failure::Refused(
            "permission denied: grant the user read and write on Torus's prefix (etcdctl role grant-permission)".into(),
        ),
        (Code::InvalidArgument, "user name is empty") => {
            Failure::Refused("it wants a user: pass --etcd-user and a password".into())
        }
        (Code::InvalidArgument, "authentication failed, invalid user ID or password") => {
            Failure::Refused("it does not accept the user or the password: check --etcd-user and the password".into())
        }
        (Code::FailedPrecondition, "authentication is not enabled") => {
            Failure::Refused("it has no authentication enabled, and a user was given: leave --etcd-user out".into())
        }
        (Code::NotFound, "requested lease not found") => Failure::LeaseGone,
        (
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss,
            _,
        ) => Failure::Refused(words.into()),
        _ => Failure::Unknown(words.into()),
    }
}

/// Whether the error is that no connection could be made.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether the other side took a connection and ended it at once. Before there is a connection that is called "refused".
fn was_hung_up(error: &dyn std::error::Error) -> bool {
    let ends = |error: &std::io::Error| {
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe)
    };
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref()).any(ends)
}

/// An answer that no etcd gives: no gRPC, or no such service.
fn is_foreign(status: &Status) -> bool {
    let text = status.message();
    status.code() == Code::Unimplemented
        || text.contains("grpc-status header missing")
        || (text.contains("h2 protocol error") || text.contains("http2 error"))
            && root_cause(status).contains("frame with invalid size")
}

/// The innermost error's text: tonic's outer ones say "transport error".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn connect_advice(cause: &str, was_hung_up: bool) -> String {
    // rustls names the reasons so; the operating system's own ("Connection refused") need no advice here.
    if cause.contains("InvalidContentType") || cause.contains("tls handshake eof") {
        format!("{cause}: it does not speak TLS, so use http:// in place of https://")
    } else if was_hung_up {
        // Whoever closes a connection on a greeting that it cannot read may do so before its own words are read.
        format!("{cause}: it hangs up on a greeting of TLS. If it does not speak TLS, use http:// in place of https://")
    } else if cause.contains("UnknownIssuer") {
        format!("{cause}: its certificate is not signed by the CA in --etcd-ca")
    } else if cause.contains("not valid for name") || cause.contains("NotValidForName") {
        format!("{cause}: its certificate is for another name or address")
    } else {
        cause.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: Status) -> &'static str {
        match classify(&Error::GRpcStatus(status)) {
            Failure::Unreachable(_) => "unreachable",
            Failure::NotNow(_) => "not now",
            Failure::Unknown(_) => "unknown",
            Failure::OtherCluster(_) => "other cluster",
            Failure::Foreign(_) => "foreign",
            Failure::Refused(_) => "refused",
            Failure::NoSpace(_) => "no space",
            Failure::LeaseGone => "lease gone",
            Failure::Rewound(_) => "rewound",
        }
    }

    #[test]
    fn etcds_own_no_is_a_refusal() {
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument("etcdserver: request is too large"),
            Status::invalid_argument("etcdserver: user name is empty"),
            Status::unauthenticated("etcdserver: invalid auth token"),
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
            Status::resource_exhausted("grpc: received message larger than max (9 vs. 8)"),
        ] {
            assert_eq!(kind(status.clone()), "refused", "{status:?}");
        }
        assert_eq!(kind(Status::not_found("etcdserver: requested lease not found")), "lease gone");
        assert_eq!(kind(Status::resource_exhausted("etcdserver: too many requests")), "not now");
        assert_eq!(kind(Status::resource_exhausted("etcdserver: mvcc: database space exceeded")), "no space");
    }

    /// All of these may come after etcd has carried the request out.
    #[test]
    fn what_may_have_happened_is_unknown() {
        for status in [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable("etcdserver: request timed out, possibly due to previous leader failure"),
            Status::unavailable("etcdserver: leader changed"),
            Status::unavailable("etcdserver: no leader"),
            Status::unknown("etcdserver: something new"),
            // The same codes from elsewhere: a reset stream, a proxy, our own decoder.
            Status::resource_exhausted("h2 protocol error: http2 error"),
            Status::permission_denied("h2 protocol error: http2 error"),
            Status::permission_denied("403 by the proxy"),
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes"),
            Status::cancelled("operation was canceled"),
            Status::internal("h2 protocol error: http2 error"),
            Status::deadline_exceeded("too late"),
        ] {
            assert_eq!(kind(status.clone()), "unknown", "{status:?}");
        }
    }

    #[test]
    fn a_connection_that_was_never_made_is_known_to_be_none() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(Status::from_error(Box::new(ConnectError(Box::new(refused))))), "unreachable");
        // The same words without the proof.
        assert_eq!(kind(Status::unavailable("connection refused")), "unknown");
    }

    #[test]
    fn who_hangs_up_on_a_greeting_may_not_speak_tls() {
        let advice = |kind: ErrorKind| {
            let error = ConnectError(Box::new(std::io::Error::from(kind)));
            match classify(&Error::GRpcStatus(Status::from_error(Box::new(error)))) {
                Failure::Unreachable(text) => text,
                other => panic!("{other:?}"),
            }
        };
        for kind in [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe] {
            assert!(advice(kind).contains("does not speak TLS"), "{}", advice(kind));
        }
        assert!(!advice(ErrorKind::ConnectionRefused).contains("TLS"));
    }

    #[test]
    fn what_no_etcd_says_is_foreign() {
        assert_eq!(kind(Status::unimplemented("unknown service etcdserverpb.KV")), "foreign");
        let missing = "grpc-status header missing, mapped from HTTP status code 404";
        assert_eq!(kind(Status::unknown(missing)), "foreign");
    }
}
