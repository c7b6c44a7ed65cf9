//! How exchanges and handshakes end: closed sets of words, each spelled once.
//!
//! The same word is the client's `code`, the metric's label and the audit record's field. Adding a word here breaks
//! the build wherever a decision about it is missing. Nothing here holds state or formats a response.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every word, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// Why a request was refused, or a stream cut.
    Code {
        /// No client certificate was presented (`on_missing = "explain"`).
        ClientCertificateRequired = "client_certificate_required",
        /// The certificate is valid, and belongs to no organization.
        OrganizationUnknown = "organization_unknown",
        /// The certificate was revoked, by its authority or by the operator.
        CertificateRevoked = "certificate_revoked",
        /// The certificate's validity has ended.
        CertificateExpired = "certificate_expired",
        /// The organization, or an ancestor, is suspended or revoked.
        OrganizationSuspended = "organization_suspended",
        /// Outside the grant's dates.
        GrantExpired = "grant_expired",
        /// Not from a network the identity allows.
        NetworkNotPermitted = "network_not_permitted",
        /// No purpose header.
        PurposeMissing = "purpose_missing",
        /// More than one purpose, or one that breaks the grammar.
        PurposeInvalid = "purpose_invalid",
        /// Not in the catalogue.
        PurposeUnknown = "purpose_unknown",
        /// The purpose needs a case reference.
        CaseMissing = "case_missing",
        /// The case reference breaks its grammar.
        CaseInvalid = "case_invalid",
        /// Not granted to this organization.
        PurposeNotPermitted = "purpose_not_permitted",
        /// The model is not granted to this organization.
        ModelNotPermitted = "model_not_permitted",
        /// The body names no model.
        ModelMissing = "model_missing",
        /// Not JSON, duplicate metered keys, too deep, or a metered field of the wrong kind.
        BodyInvalid = "body_invalid",
        /// Path, query, Host or headers are not exactly well-formed.
        RequestInvalid = "request_invalid",
        /// The request alone is larger than a limit can ever hold.
        QuotaRequestTooLarge = "quota_request_too_large",
        /// No such route.
        RouteNotFound = "route_not_found",
        /// The route exists; this method does not.
        MethodNotAllowed = "method_not_allowed",
        /// Host names a server that is not served here.
        HostNotServed = "host_not_served",
        /// The body is larger than `listen.max_body`.
        BodyTooLarge = "body_too_large",
        /// Not `application/json`, or compressed.
        MediaTypeNotSupported = "media_type_not_supported",
        /// Too many or too long header lines.
        HeadersTooLarge = "headers_too_large",
        /// A rate (second, minute, hour) is used up.
        RateLimitExceeded = "rate_limit_exceeded",
        /// Too many requests under way.
        ConcurrencyLimitExceeded = "concurrency_limit_exceeded",
        /// A budget (day, month) is used up.
        InsufficientQuota = "insufficient_quota",
        /// The quota store does not answer.
        QuotaUnavailable = "quota_unavailable",
        /// The audit log cannot be written.
        AuditUnavailable = "audit_unavailable",
        /// The gateway is stopping.
        Draining = "draining",
        /// The gateway has no room.
        Overloaded = "overloaded",
        /// No connection to the upstream.
        UpstreamUnreachable = "upstream_unreachable",
        /// The upstream's answer is not acceptable HTTP, or died.
        UpstreamInvalid = "upstream_invalid",
        /// The upstream kept silent for too long.
        UpstreamTimeout = "upstream_timeout",
        /// A panic, contained to its exchange.
        InternalError = "internal_error",
    }
}

words! {
    /// How an exchange ended.
    Ending {
        /// The answer was delivered whole.
        Complete = "complete",
        /// The client left.
        ClientGone = "client_gone",
        /// The client stopped taking bytes.
        ClientStalled = "client_stalled",
        /// The upstream failed.
        UpstreamFailed = "upstream_failed",
        /// The upstream fell silent.
        UpstreamTimeout = "upstream_timeout",
        /// A budget refused a further step.
        QuotaCut = "quota_cut",
        /// Access was withdrawn.
        Severed = "severed",
        /// Drain's deadline came.
        Drained = "drained",
        /// A panic.
        Panicked = "panicked",
        /// Refused before anything was forwarded.
        Refused = "refused",
    }
}

words! {
    /// How a TLS handshake ended.
    Handshake {
        /// A peer was proved.
        Ok = "ok",
        /// No client certificate.
        NoCertificate = "no_certificate",
        /// No configured authority vouches for the chain.
        UnknownIssuer = "unknown_issuer",
        /// A certificate's validity has ended.
        Expired = "expired",
        /// A certificate's validity has not begun.
        NotYetValid = "not_yet_valid",
        /// Revoked by a CRL or by the operator.
        Revoked = "revoked",
        /// The certificate breaks the profile, or two authorities vouch for it.
        BadCertificate = "bad_certificate",
        /// SNI is absent or names another server.
        ServerName = "server_name",
        /// No common protocol version.
        Version = "version",
        /// Not finished in time.
        Timeout = "timeout",
        /// Turned away before it began, for want of room.
        Shed = "shed",
        /// Anything else.
        Other = "other",
    }
}

/// `error.type` of the refusal envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// Who are you?
    Authentication,
    /// You may not.
    Permission,
    /// The request itself is wrong.
    InvalidRequest,
    /// Not now.
    RateLimit,
    /// Our side, or the upstream's.
    Api,
}

impl ErrorType {
    /// The word both vendors' SDKs know.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorType::Authentication => "authentication_error",
            ErrorType::Permission => "permission_error",
            ErrorType::InvalidRequest => "invalid_request_error",
            ErrorType::RateLimit => "rate_limit_error",
            ErrorType::Api => "api_error",
        }
    }
}

impl Code {
    /// HTTP status and `error.type`: the one table.
    #[must_use]
    pub fn on_the_wire(self) -> (u16, ErrorType) {
        use ErrorType::{Api, Authentication, InvalidRequest, Permission, RateLimit};
        match self {
            Code::ClientCertificateRequired => (401, Authentication),
            Code::OrganizationUnknown
            | Code::CertificateRevoked
            | Code::CertificateExpired
            | Code::OrganizationSuspended
            | Code::GrantExpired
            | Code::NetworkNotPermitted
            | Code::PurposeNotPermitted
            | Code::ModelNotPermitted => (403, Permission),
            Code::PurposeMissing
            | Code::PurposeInvalid
            | Code::PurposeUnknown
            | Code::CaseMissing
            | Code::CaseInvalid
            | Code::ModelMissing
            | Code::BodyInvalid
            | Code::RequestInvalid
            | Code::QuotaRequestTooLarge => (400, InvalidRequest),
            Code::RouteNotFound => (404, InvalidRequest),
            Code::MethodNotAllowed => (405, InvalidRequest),
            Code::HostNotServed => (421, InvalidRequest),
            Code::BodyTooLarge => (413, InvalidRequest),
            Code::MediaTypeNotSupported => (415, InvalidRequest),
            Code::HeadersTooLarge => (431, InvalidRequest),
            Code::RateLimitExceeded | Code::ConcurrencyLimitExceeded | Code::InsufficientQuota => (429, RateLimit),
            Code::QuotaUnavailable | Code::AuditUnavailable | Code::Draining | Code::Overloaded => (503, Api),
            Code::UpstreamUnreachable | Code::UpstreamInvalid => (502, Api),
            Code::UpstreamTimeout => (504, Api),
            Code::InternalError => (500, Api),
        }
    }
}

/// Longer waits are not worth keeping a program waiting for.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a client is told about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Waiting changes nothing (`x-should-retry: false`).
    Never,
    /// After this wait; longer than [`LONGEST_WAIT`] also says `x-should-retry: false`.
    After(Duration),
    /// Nothing is said.
    Unsaid,
}

/// A refusal: what the client is told, and, apart from it, what the operator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// A sentence for the client: what to do. Never holds addresses, paths or other organizations.
    pub message: String,
    /// The header or body field at fault, when there is one.
    pub param: Option<Cow<'static, str>>,
    /// Advice on trying again.
    pub retry: Retry,
    /// A detail for logs and the audit trail only.
    pub operator: Option<String>,
}

impl Refusal {
    /// A refusal with a message for the client.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        let retry = match code.on_the_wire() {
            (429 | 503, _) => Retry::After(Duration::from_secs(1)),
            (400..=499, _) => Retry::Never,
            _ => Retry::Unsaid,
        };
        Refusal { code, message: message.into(), param: None, retry, operator: None }
    }

    /// Names the header or body field at fault.
    #[must_use]
    pub fn at(mut self, param: impl Into<Cow<'static, str>>) -> Refusal {
        self.param = Some(param.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Refusal {
        self.retry = retry;
        self
    }

    /// Adds what only the operator may read.
    #[must_use]
    pub fn for_operator(mut self, detail: impl Into<String>) -> Refusal {
        self.operator = Some(detail.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_statuses_are_errors() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code}");
            assert!((400..=599).contains(&code.on_the_wire().0), "{code}");
        }
    }
}
