//! What the fields of a head say about the body and the connection.

use crate::bytes;
use crate::headers::Verdict;
use crate::{Known, Malformed};

/// What the fields of a head say about framing and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Framing {
    pub(crate) content_length: Option<u64>,
    pub(crate) transfer_encoding: Option<TransferEncoding>,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) connection_upgrade: bool,
    /// `connection` has a member that is no option of its own.
    pub(crate) connection_nominates: bool,
}

/// What `transfer-encoding` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferEncoding {
    Chunked,
    Other,
}

impl Framing {
    /// Takes in one field; what becomes of it. `transfer-encoding` goes: the body's length says what is written.
    pub(crate) fn on_field(&mut self, known: Option<Known>, value: &[u8]) -> Result<Verdict, Malformed> {
        match known {
            Some(Known::ContentLength) => return self.on_content_length(value),
            Some(Known::TransferEncoding) => {
                self.on_transfer_encoding(value);
                return Ok(Verdict::Drop);
            }
            Some(Known::Connection) => self.on_connection(value),
            _ => {}
        }
        Ok(Verdict::Keep)
    }

    /// Takes in one `content-length`, which is kept without leading zeros.
    fn on_content_length(&mut self, value: &[u8]) -> Result<Verdict, Malformed> {
        let length = bytes::decimal(value).ok_or(Malformed::ContentLength)?;
        // RFC 9112 §6.3 would let equal ones become one. A sender that writes two has lost track of its framing.
        if self.content_length.replace(length).is_some() {
            return Err(Malformed::ContentLengthRepeated);
        }
        let zeros = value.iter().take_while(|digit| **digit == b'0').count();
        Ok(Verdict::TrimStart(zeros.min(value.len() - 1)))
    }

    /// Takes in one `transfer-encoding`. Two of them are a list of two codings, and `chunked` twice is none that exists.
    fn on_transfer_encoding(&mut self, value: &[u8]) {
        let chunked = self.transfer_encoding.is_none() && value.eq_ignore_ascii_case(b"chunked");
        self.transfer_encoding = Some(if chunked { TransferEncoding::Chunked } else { TransferEncoding::Other });
    }

    /// Takes in one `connection`.
    fn on_connection(&mut self, value: &[u8]) {
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return;
        }
        for token in bytes::list(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else {
                self.connection_nominates = true;
            }
        }
    }
}
