//! The PROXY protocol, versions 1 and 2: a connection's first bytes say whom it comes from and where it went.
//!
//! Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020/03/05), §2.1, §2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The two versions on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// In which version.
    pub version: Version,
    /// The client's address and the one that it connected to; `None` where the sender speaks for itself or cannot tell.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Further facts of version 2, in order.
    pub tlvs: Vec<Tlv>,
}

/// A type and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// What it is, for instance 0x02 for the server name.
    pub kind: u8,
    /// Its value.
    pub value: Box<[u8]>,
}

/// What a connection's first bytes say of the PROXY protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// They begin no header.
    Absent,
    /// They begin one that breaks its own rules.
    Malformed(Version),
    /// A header in the first `length` bytes.
    Complete {
        /// What it says.
        header: ProxyHeader,
        /// How long it is.
        length: usize,
    },
}

/// Which version's signature `bytes` begin with.
pub fn signature(bytes: &[u8]) -> Option<Version> {
    match bytes {
        _ if bytes.starts_with(V1_SIGNATURE) => Some(Version::V1),
        _ if bytes.starts_with(V2_SIGNATURE) => Some(Version::V2),
        _ => None,
    }
}

/// Looks at `bytes`, all that was received.
pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(V2_SIGNATURE) {
        return parse_v2(bytes).unwrap_or(Parsed::Malformed(Version::V2));
    }
    if bytes.starts_with(V1_SIGNATURE) {
        return parse_v1(bytes).unwrap_or(Parsed::Malformed(Version::V1));
    }
    if V1_SIGNATURE.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes) {
        return Parsed::Incomplete;
    }
    Parsed::Absent
}

fn parse_v1(bytes: &[u8]) -> Option<Parsed> {
    let searched = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return (bytes.len() < V1_BYTES_MAX).then_some(Parsed::Incomplete);
    };
    let line = std::str::from_utf8(searched.get(..end)?).ok()?;
    let mut words = line.split(' ').skip(1);
    let protocol = words.next()?;
    let addresses = match protocol {
        // What follows means nothing.
        "UNKNOWN" => None,
        "TCP4" | "TCP6" => {
            let (source, destination) = (words.next()?, words.next()?);
            let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
            let address = |text: &str| -> Option<IpAddr> {
                match protocol {
                    "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
                    _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                }
            };
            if words.next().is_some() {
                return None;
            }
            let source = SocketAddr::new(address(source)?, source_port);
            Some((source, SocketAddr::new(address(destination)?, destination_port)))
        }
        _ => return None,
    };
    let header = ProxyHeader { version: Version::V1, addresses, tlvs: Vec::new() };
    Some(Parsed::Complete { header, length: end + 2 })
}

/// Digits without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

fn parse_v2(bytes: &[u8]) -> Option<Parsed> {
    let Some([command, family, high, low]) = bytes.get(12..16).and_then(|fixed| <[u8; 4]>::try_from(fixed).ok()) else {
        // What is there of it may be wrong already.
        let command_is_known = bytes.get(12).is_none_or(|command| matches!(command, 0x20 | 0x21));
        return command_is_known.then_some(Parsed::Incomplete);
    };
    let is_proxied = match command {
        0x20 => false,
        0x21 => true,
        _ => return None,
    };
    let address_bytes = match (is_proxied, family) {
        (true, 0x11) => 12,
        (true, 0x21) => 36,
        // AF_UNSPEC: the sender does not know; its own addresses count, and all that follows is further facts.
        (true, 0x00) | (false, _) => 0,
        (true, _) => return None,
    };
    let content_bytes = usize::from(u16::from_be_bytes([high, low]));
    if content_bytes < address_bytes {
        return None;
    }
    let length = 16 + content_bytes;
    let Some(content) = bytes.get(16..length) else { return Some(Parsed::Incomplete) };
    let (addresses, tlvs) = content.split_at_checked(address_bytes)?;
    let addresses = match family {
        _ if address_bytes == 0 => None,
        0x11 => Some(pair::<4>(addresses)?),
        _ => Some(pair::<16>(addresses)?),
    };
    // A sender that speaks for itself may put anything there (§2.2).
    let tlvs = if is_proxied { parse_tlvs(tlvs)? } else { Vec::new() };
    Some(Parsed::Complete { header: ProxyHeader { version: Version::V2, addresses, tlvs }, length })
}

fn pair<const N: usize>(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    let address = |bytes: &[u8; N], port: &[u8; 2]| SocketAddr::new(IpAddr::from(*bytes), u16::from_be_bytes(*port));
    Some((address(source, source_port), address(destination, destination_port)))
}

fn parse_tlvs(mut rest: &[u8]) -> Option<Vec<Tlv>> {
    let mut tlvs = Vec::new();
    while let Some(([kind, high, low], more)) = rest.split_first_chunk::<3>() {
        let (value, more) = more.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
        tlvs.push(Tlv { kind: *kind, value: value.into() });
        rest = more;
    }
    rest.is_empty().then_some(tlvs)
}

/// The header as it goes to an endpoint, from a client at `source` that connected to `destination`. Without addresses, or with two
/// families, it says that they are unknown. What is too long for its length field is left out from the end.
pub fn encode(version: Version, addresses: Option<(SocketAddr, SocketAddr)>, tlvs: &[&Tlv]) -> Vec<u8> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let addresses = addresses.map(|(source, destination)| (canonical(source), canonical(destination)));
    match (version, addresses) {
        (Version::V1, Some((source, destination))) if source.is_ipv4() == destination.is_ipv4() => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (Version::V1, _) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Version::V2, addresses) => encode_v2(addresses, tlvs),
    }
}

fn encode_v2(addresses: Option<(SocketAddr, SocketAddr)>, tlvs: &[&Tlv]) -> Vec<u8> {
    let mut content = Vec::with_capacity(36);
    let (command, family) = match addresses {
        Some((SocketAddr::V4(source), SocketAddr::V4(destination))) => {
            content.extend_from_slice(&source.ip().octets());
            content.extend_from_slice(&destination.ip().octets());
            (0x21, 0x11)
        }
        Some((source, destination)) => {
            for address in [source, destination] {
                let ip = match address.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                content.extend_from_slice(&ip.octets());
            }
            (0x21, 0x21)
        }
        None => (0x20, 0x00),
    };
    if let Some((source, destination)) = addresses {
        content.extend_from_slice(&source.port().to_be_bytes());
        content.extend_from_slice(&destination.port().to_be_bytes());
    }
    for tlv in tlvs {
        let Ok(value_bytes) = u16::try_from(tlv.value.len()) else { continue };
        if content.len() + 3 + tlv.value.len() > usize::from(u16::MAX) {
            break;
        }
        content.push(tlv.kind);
        content.extend_from_slice(&value_bytes.to_be_bytes());
        content.extend_from_slice(&tlv.value);
    }
    let mut header = V2_SIGNATURE.to_vec();
    header.extend_from_slice(&[command, family]);
    header.extend_from_slice(&u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend_from_slice(&content);
    header
}

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line with its end (§2.1).
const V1_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(bytes: &[u8]) -> (ProxyHeader, usize) {
        match parse(bytes) {
            Parsed::Complete { header, length } => (header, length),
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn addresses(source: &str, destination: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((source.parse().unwrap(), destination.parse().unwrap()))
    }

    #[test]
    fn lines_of_version_1() {
        let check = |line: &[u8], expect: Option<(SocketAddr, SocketAddr)>| {
            let (header, length) = complete(line);
            assert_eq!((header.version, header.addresses), (Version::V1, expect), "{}", line.escape_ascii());
            assert_eq!(&line[length..], b"GET");
            for cut in 0..length {
                assert_eq!(parse(&line[..cut]), Parsed::Incomplete, "{}", line[..cut].escape_ascii());
            }
        };
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 111 222\r\nGET", addresses("1.2.3.4:111", "5.6.7.8:222"));
        check(b"PROXY TCP6 ::1 2001:db8::2 0 65535\r\nGET", addresses("[::1]:0", "[2001:db8::2]:65535"));
        check(b"PROXY UNKNOWN\r\nGET", None);
        check(b"PROXY UNKNOWN ffff::1 ::2 x y\r\nGET", None);
    }

    #[test]
    fn broken_lines_of_version_1() {
        let long = [b"PROXY UNKNOWN ", &[b'a'; V1_BYTES_MAX][..]].concat();
        let broken: &[&[u8]] = &[
            b"PROXY TCP4 1.2.3.4 5.6.7.8 111\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 111 222 333\r\n",
            b"PROXY TCP4 ::1 ::2 111 222\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 111 222\r\n",
            b"PROXY TCP4 1.2.3 5.6.7.8 111 222\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 222\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 222\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 01 222\r\n",
            b"PROXY TCP4  1.2.3.4 5.6.7.8 1 222\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 222\r\n",
            b"PROXY tcp4 1.2.3.4 5.6.7.8 1 222\r\n",
            b"PROXY \xff\r\n",
            b"PROXY \r\n",
            &long,
        ];
        for line in broken {
            assert_eq!(parse(line), Parsed::Malformed(Version::V1), "{}", line.escape_ascii());
        }
        for other in [&b"PROXX"[..], b"GET / HTTP/1.1", b"\r\n\r\n\0\r\nQUIX", b"\x16\x03\x01"] {
            assert_eq!(parse(other), Parsed::Absent, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn version_2_comes_back_as_it_was_written() {
        let tlv = |kind, value: &[u8]| Tlv { kind, value: value.into() };
        let tlvs = [tlv(2, b"a.test"), tlv(0xe0, b""), tlv(4, &[0; 300])];
        let all: Vec<&Tlv> = tlvs.iter().collect();
        for (place, known) in [
            addresses("1.2.3.4:111", "5.6.7.8:222"),
            addresses("[::1]:1", "[2001:db8::2]:65535"),
            addresses("[::ffff:1.2.3.4]:1", "5.6.7.8:2"),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = [&encode(Version::V2, known, &all)[..], b"rest"].concat();
            let (header, length) = complete(&bytes);
            assert_eq!(&bytes[length..], b"rest");
            let expect = if place == 2 { addresses("1.2.3.4:1", "5.6.7.8:2") } else { known };
            assert_eq!(header, ProxyHeader { version: Version::V2, addresses: expect, tlvs: tlvs.to_vec() });
            for cut in 0..length {
                assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete);
            }
        }
        let (local, _) = complete(&encode(Version::V2, None, &[]));
        assert_eq!(local.addresses, None);
        assert_eq!(
            encode(Version::V1, addresses("1.2.3.4:1", "5.6.7.8:2"), &[]),
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"
        );
        assert_eq!(encode(Version::V1, addresses("1.2.3.4:1", "[::1]:2"), &[]), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn broken_headers_of_version_2() {
        let check = |rest: &[u8], expect: Parsed| {
            let bytes = [V2_SIGNATURE, rest].concat();
            assert_eq!(parse(&bytes), expect, "{}", rest.escape_ascii());
        };
        let malformed = || Parsed::Malformed(Version::V2);
        check(b"\x11", malformed());
        check(b"\x22\x11\0\0", malformed());
        check(b"\x21\x12\0\x0c", malformed());
        check(b"\x21\x31\0\xd8", malformed());
        check(b"\x21\x11\0\x0b", malformed());
        check(b"\x21\x21\0\x23", malformed());
        // A further fact that is longer than what is left.
        check(b"\x21\x11\0\x0f\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02\x02\0\x01", malformed());
        check(b"\x21\x11\0\x0e\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02\x02\0", malformed());
        let unknown = ProxyHeader { version: Version::V2, addresses: None, tlvs: Vec::new() };
        check(b"\x21\0\0\0", Parsed::Complete { header: unknown.clone(), length: 16 });
        check(b"\x20\x11\0\x03abc", Parsed::Complete { header: unknown, length: 19 });
    }
}
