//! Server name and application protocols of a TLS ClientHello, from the bytes that came so far.
//!
//! Nothing is kept between calls and nothing is copied before the message is whole. What is no ClientHello is said to be none as
//! soon as a byte shows it, so that a client of another protocol is not waited for.

use std::sync::Arc;

use super::chain_match::Found;

/// What the first bytes of a connection say about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientHello {
    /// More bytes are needed.
    Incomplete,
    /// They are no TLS handshake, or one that breaks its own rules.
    Absent,
    /// The message is longer than allowed.
    TooLarge,
    /// What the client asks for.
    Complete(Found),
}

/// Looks at `bytes`, all that was received. `bytes_max` limits the handshake message with its header.
///
/// Source: RFC 8446 §4.1.2 and §5.1; RFC 6066 §3 (server_name); RFC 7301 §3.1 (ALPN).
pub fn client_hello(bytes: &[u8], bytes_max: usize) -> ClientHello {
    let mut message = Message { records: bytes, current: &[] };
    let mut header = [0; 4];
    match message.take(&mut header) {
        Taken::All => {}
        Taken::Short => return ClientHello::Incomplete,
        Taken::Wrong => return ClientHello::Absent,
    }
    let [kind, high, middle, low] = header;
    if kind != CLIENT_HELLO {
        return ClientHello::Absent;
    }
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if length + header.len() > bytes_max {
        return ClientHello::TooLarge;
    }
    // In most cases the message is in one record, and nothing is copied.
    if let Some(whole) = message.current.get(..length) {
        return parse(whole);
    }
    let mut whole = vec![0; length.min(bytes.len())];
    if whole.len() < length {
        // Not even all the bytes could hold it; a wrong record among them is seen all the same.
        return match message.take(&mut whole) {
            Taken::Wrong => ClientHello::Absent,
            Taken::All | Taken::Short => ClientHello::Incomplete,
        };
    }
    match message.take(&mut whole) {
        Taken::All => parse(&whole),
        Taken::Short => ClientHello::Incomplete,
        Taken::Wrong => ClientHello::Absent,
    }
}

/// A handshake message spread over records.
struct Message<'a> {
    records: &'a [u8],
    current: &'a [u8],
}

enum Taken {
    All,
    Short,
    Wrong,
}

impl<'a> Message<'a> {
    fn take(&mut self, into: &mut [u8]) -> Taken {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            if self.current.is_empty() {
                match self.next_record() {
                    Taken::All => {}
                    other => return other,
                }
            }
            let count = rest.len().min(self.current.len());
            let (now, later) = self.current.split_at(count);
            for (slot, byte) in rest.iter_mut().zip(now) {
                *slot = *byte;
            }
            (self.current, filled) = (later, filled + count);
        }
        Taken::All
    }

    /// Opens the next record, as far as it came. Its header is judged byte by byte.
    fn next_record(&mut self) -> Taken {
        let mut fields = self.records.iter().copied();
        match fields.next() {
            Some(HANDSHAKE) => {}
            Some(_) => return Taken::Wrong,
            None => return Taken::Short,
        }
        match fields.next() {
            Some(VERSION_MAJOR) => {}
            Some(_) => return Taken::Wrong,
            None => return Taken::Short,
        }
        let (Some(_minor), Some(high), Some(low)) = (fields.next(), fields.next(), fields.next()) else {
            return Taken::Short;
        };
        let length = usize::from(high) << 8 | usize::from(low);
        if length == 0 || length > RECORD_BYTES_MAX {
            return Taken::Wrong;
        }
        let body = self.records.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        if body.is_empty() {
            return Taken::Short;
        }
        let (now, later) = body.split_at(length.min(body.len()));
        (self.current, self.records) = (now, later);
        Taken::All
    }
}

fn parse(message: &[u8]) -> ClientHello {
    match fields(message) {
        Some(found) => ClientHello::Complete(found),
        None => ClientHello::Absent,
    }
}

fn fields(message: &[u8]) -> Option<Found> {
    let mut input = Input(message);
    input.bytes(VERSION_BYTES + RANDOM_BYTES)?;
    input.short_vector()?; // session id
    let suites = input.long_vector()?;
    let compressions = input.short_vector()?;
    if suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    let mut found = Found { is_tls: true, ..Found::default() };
    if input.0.is_empty() {
        return Some(found); // TLS 1.2 allows a message without extensions (RFC 5246 §7.4.1.2)
    }
    let mut extensions = Input(input.long_vector()?);
    if !input.0.is_empty() {
        return None;
    }
    let (mut seen_name, mut seen_protocols) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let body = Input(extensions.long_vector()?);
        match kind {
            SERVER_NAME if std::mem::replace(&mut seen_name, true) => return None,
            APPLICATION_PROTOCOLS if std::mem::replace(&mut seen_protocols, true) => return None,
            SERVER_NAME => found.server_name = server_name(body)?,
            APPLICATION_PROTOCOLS => found.application_protocols = protocols(body)?,
            _ => {}
        }
    }
    Some(found)
}

/// `Some(None)` for an empty name.
fn server_name(mut body: Input<'_>) -> Option<Option<Arc<str>>> {
    let mut names = Input(body.long_vector()?);
    if !body.0.is_empty() {
        return None;
    }
    let kind = names.byte()?;
    let name = names.long_vector()?;
    // One name, of the one kind that there is (RFC 6066 §3); a NUL would cut it short for others who read it.
    if kind != HOST_NAME || !names.0.is_empty() || name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return None;
    }
    Some(Some(std::str::from_utf8(name).ok()?.to_ascii_lowercase().into()))
}

fn protocols(mut body: Input<'_>) -> Option<Vec<Box<[u8]>>> {
    let mut list = Input(body.long_vector()?);
    if !body.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.short_vector()?;
        if name.is_empty() {
            return None;
        }
        protocols.push(name.into());
    }
    Some(protocols)
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(count)?;
        self.0 = later;
        Some(now)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    /// A vector whose length is one byte.
    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.bytes(length.into())
    }

    /// A vector whose length is two bytes.
    fn long_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.bytes(length.into())
    }
}

/// ContentType handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// First byte of every record's version (RFC 8446 §5.1).
const VERSION_MAJOR: u8 = 3;
const RECORD_HEADER_BYTES: usize = 5;
/// Plaintext of a record (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
/// HandshakeType client_hello (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
const VERSION_BYTES: usize = 2;
const RANDOM_BYTES: usize = 32;
/// ExtensionType server_name (RFC 6066 §1.1).
const SERVER_NAME: u16 = 0;
/// NameType host_name (RFC 6066 §3).
const HOST_NAME: u8 = 0;
/// A host name in text form (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// ExtensionType application_layer_protocol_negotiation (RFC 7301 §6).
const APPLICATION_PROTOCOLS: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 16 * 1024;

    /// A ClientHello as rustls writes it, in one record.
    fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.enable_sni = !name.is_empty();
        let name = if name.is_empty() { "x.test" } else { name }.to_owned();
        let mut connection = rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes.
    fn split(bytes: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let mut record = vec![22, 3, 1];
            record.extend((part.len() as u16).to_be_bytes());
            record.extend(part);
            record
        };
        bytes[5..].chunks(size).flat_map(record).collect()
    }

    fn found(name: &str, protocols: &[&str]) -> Found {
        Found {
            is_tls: true,
            server_name: (!name.is_empty()).then(|| name.into()),
            application_protocols: protocols.iter().map(|name| name.as_bytes().into()).collect(),
        }
    }

    #[test]
    fn names_and_protocols_are_found_wherever_the_message_is_cut() {
        for (asked, name, protocols) in
            [("A.Example.com", "a.example.com", &["h2", "http/1.1"][..]), ("", "", &[]), ("b.test", "b.test", &["x"])]
        {
            let bytes = hello(asked, protocols);
            let expect = ClientHello::Complete(found(name, protocols));
            for size in [bytes.len(), 1, 3, 100] {
                let bytes = split(&bytes, size);
                assert_eq!(client_hello(&bytes, LIMIT), expect, "records of {size}");
                for cut in 0..bytes.len() {
                    assert_eq!(client_hello(&bytes[..cut], LIMIT), ClientHello::Incomplete, "{size} cut at {cut}");
                }
                let more = [&bytes[..], b"\x14\x03\x03"].concat();
                assert_eq!(client_hello(&more, LIMIT), expect);
            }
        }
    }

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"P", b"\x16\x02", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x40\x01"] {
            assert_eq!(client_hello(bytes, LIMIT), ClientHello::Absent, "{}", bytes.escape_ascii());
        }
        // A ServerHello.
        assert_eq!(client_hello(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", LIMIT), ClientHello::Absent);
        for bytes in [&b""[..], b"\x16", b"\x16\x03", b"\x16\x03\x01\x00"] {
            assert_eq!(client_hello(bytes, LIMIT), ClientHello::Incomplete);
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_its_header() {
        let bytes = hello("a.test", &[]);
        assert_eq!(client_hello(&bytes, bytes.len() - 6), ClientHello::TooLarge);
        assert_eq!(client_hello(&bytes[..9], bytes.len() - 6), ClientHello::TooLarge);
        assert!(matches!(client_hello(&bytes, bytes.len() - 5), ClientHello::Complete(_)));
    }

    #[test]
    fn broken_fields_are_no_client_hello() {
        let extension =
            |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat();
        let message = |suites: &[u8], extensions: &[u8]| {
            let mut body = vec![3, 3];
            body.extend([0; 32]);
            body.push(0);
            body.extend((suites.len() as u16).to_be_bytes());
            body.extend(suites);
            body.extend([1, 0]);
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
            let mut bytes = vec![22, 3, 1];
            bytes.extend((body.len() as u16 + 4).to_be_bytes());
            bytes.extend([1, 0]);
            bytes.extend((body.len() as u16).to_be_bytes());
            bytes.extend(body);
            client_hello(&bytes, LIMIT)
        };
        let name = extension(0, b"\x00\x04\x00\x00\x01a");
        assert_eq!(message(b"\x13\x01", &name), ClientHello::Complete(found("a", &[])));
        for (suites, extensions) in [
            (&b""[..], name.clone()),
            (b"\x13", name.clone()),
            (b"\x13\x01", [&name[..], &name].concat()),
            (b"\x13\x01", extension(0, b"\x00\x03\x00\x00\x00")),
            (b"\x13\x01", extension(0, b"\x00\x04\x01\x00\x01a")),
            (b"\x13\x01", extension(0, b"\x00\x05\x00\x00\x02a\x00")),
            (b"\x13\x01", extension(0, b"\x00\x09\x00\x00\x01a")),
            (b"\x13\x01", extension(16, b"\x00\x00")),
            (b"\x13\x01", extension(16, b"\x00\x01\x00")),
            (b"\x13\x01", extension(16, b"\x00\x03\x05h2")),
            (b"\x13\x01", b"\x00\x00\x00\x09a".to_vec()),
        ] {
            assert_eq!(message(suites, &extensions), ClientHello::Absent, "{}", extensions.escape_ascii());
        }
    }
}
