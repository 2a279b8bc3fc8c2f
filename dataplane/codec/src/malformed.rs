//! Why a message is refused. The connection that carried it is closed: where its next message starts is no longer known.

use std::fmt;

macro_rules! malformed {
    ($($(#[$doc:meta])* $variant:ident = $status:literal, $details:literal, $text:literal;)*) => {
        /// Why a message is refused; each reason carries its status, Envoy's response code details and the rule that was broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Malformed { $($(#[$doc])* #[doc = ""] #[doc = $text] $variant,)* }

        impl Malformed {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The status that answers a request with this fault. A response with a fault answers 502.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Envoy's `RESPONSE_CODE_DETAILS`.
            pub const fn details(self) -> &'static str {
                match self { $(Self::$variant => $details,)* }
            }

            const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

malformed! {
    /// Start line.
    StartLine = 400, "http1.codec_error", "the start line is not three parts with one space between them (RFC 9112 §3, §4)";
    Method = 400, "http1.codec_error", "the method is no token or not a known one (RFC 9110 §9.1)";
    Target = 400, "http1.codec_error", "the request target has a byte that no URI has (RFC 9112 §3.2)";
    TargetForm = 400, "http1.invalid_url", "the request target is in none of the four forms for its method (RFC 9112 §3.2)";
    TargetFragment = 400, "path_normalization_failed", "the request target has a fragment (RFC 9112 §3.2)";
    TargetTooLong = 414, "http1.headers_too_large", "the request target is longer than allowed (RFC 9110 §15.5.15)";
    Scheme = 400, "http1.invalid_scheme", "the request target's scheme is neither http nor https (RFC 9110 §4.2)";
    SchemeOnPlaintext = 403, "http1.https_url_on_plaintext_connection", "an https target on a connection without TLS (RFC 9110 §4.3.3)";
    Version = 505, "http1.codec_error", "the version is neither HTTP/1.1 nor HTTP/1.0 (RFC 9110 §15.6.6)";
    VersionTooLow = 426, "low_version", "the version is below HTTP/1.1 and accept_http_10 is off (RFC 9110 §15.5.22)";
    Status = 502, "http1.codec_error", "the status code is not three digits from 100 (RFC 9110 §15)";

    /// Fields.
    LineEnd = 400, "http1.codec_error", "a line ends with something else than CR LF (RFC 9112 §2.2)";
    FieldName = 400, "http1.codec_error", "a field name is empty, no token, or not followed by a colon (RFC 9112 §5.1)";
    FieldValue = 400, "http1.codec_error", "a field value has a control character (RFC 9110 §5.5)";
    FieldFolded = 400, "http1.codec_error", "a field continues on the next line (RFC 9112 §5.2)";
    Underscore = 400, "http1.unexpected_underscore", "a field name has an underscore and the configuration refuses them";
    HeadTooLarge = 431, "http1.headers_too_large", "the head has more bytes than allowed (RFC 6585 §5)";
    TooManyFields = 431, "http1.too_many_headers", "the head has more fields than allowed (RFC 6585 §5)";
    ConnectionNominates = 400, "http1.connection_header_rejected", "connection nominates too many fields or one that is not its own (RFC 9110 §7.6.1)";
    Expectation = 417, "http1.codec_error", "expect is something else than 100-continue (RFC 9110 §10.1.1)";

    /// Authority.
    HostMissing = 400, "missing_host_header", "there is no host (RFC 9112 §3.2)";
    HostRepeated = 400, "http1.codec_error", "there is more than one host (RFC 9112 §3.2)";
    Authority = 400, "http.invalid_authority", "host or the target's authority is no host with an optional port (RFC 9110 §7.2, §4.2.4)";

    /// Framing.
    ContentLength = 400, "http1.codec_error", "content-length is not a row of digits that fits 64 bits (RFC 9110 §8.6)";
    ContentLengthRepeated = 400, "http1.codec_error", "content-length is there more than once (RFC 9112 §6.3)";
    LengthConflict = 400, "http1.content_length_and_chunked_not_allowed", "content-length meets transfer-encoding (RFC 9112 §6.1)";
    TransferEncoding = 501, "http1.invalid_transfer_encoding", "transfer-encoding is not exactly chunked (RFC 9112 §6.1)";
    TransferEncodingInHttp10 = 400, "http1.transfer_encoding_not_allowed", "transfer-encoding in an HTTP/1.0 message (RFC 9112 §6.1)";
    BodyNotAllowed = 400, "http1.body_disallowed", "a body where the method allows none (RFC 9110 §9.3.6)";
    TransferEncodingNotAllowed = 502, "http1.transfer_encoding_not_allowed", "transfer-encoding in a 1xx or 204 (RFC 9112 §6.1)";
    ContentLengthNotAllowed = 502, "http1.content_length_not_allowed", "content-length in a 1xx or 204 (RFC 9110 §8.6)";

    /// Chunked body.
    ChunkSize = 400, "http1.codec_error", "a chunk size is not 1 to 16 hexadecimal digits (RFC 9112 §7.1)";
    ChunkExtension = 400, "http1.codec_error", "a chunk extension is not name or name=value (RFC 9112 §7.1.1)";
    ChunkExtensionsTooLong = 413, "http1.codec_error", "the chunk extensions have more bytes than allowed (RFC 9112 §7.1.1)";
    ChunkEnd = 400, "http1.codec_error", "a chunk line or chunk data does not end with CR LF (RFC 9112 §7.1)";
    TrailersTooLarge = 431, "http1.headers_too_large", "the trailer section has more bytes than allowed (RFC 6585 §5)";
    TooManyTrailers = 431, "http1.too_many_headers", "the trailer section has more fields than allowed (RFC 6585 §5)";
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Malformed {}
