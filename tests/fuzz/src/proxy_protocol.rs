//! What must hold for the first bytes of a connection that may begin with a PROXY header, shared by the fuzz target and the replay of
//! its seeds.

use torus_proxy::listener::proxy_protocol::{Parsed, Tlv, encode, parse};

/// A verdict does not change with bytes that come later, and what was read comes back from what is written of it.
pub fn check(data: &[u8]) {
    let mut settled = None;
    for cut in 0..=data.len() {
        let verdict = parse(&data[..cut]);
        match &settled {
            None if verdict == Parsed::Incomplete => {}
            None => settled = Some(verdict),
            Some(before) => assert_eq!(&verdict, before, "cut at {cut}"),
        }
    }
    let Some(Parsed::Complete { header, length }) = settled else { return };
    assert!(length <= data.len());
    let tlvs: Vec<&Tlv> = header.tlvs.iter().collect();
    let same_family = header.addresses.filter(|(from, to)| {
        from.ip().to_canonical().is_ipv4() == to.ip().to_canonical().is_ipv4()
            && from.is_ipv4() == from.ip().to_canonical().is_ipv4()
    });
    let written = encode(header.version, same_family, &tlvs);
    let Parsed::Complete { header: read, length } = parse(&written) else { panic!("{}", written.escape_ascii()) };
    assert_eq!(length, written.len());
    assert_eq!(read.addresses, same_family);
    if same_family.is_some() {
        assert_eq!(read.tlvs, header.tlvs);
    }
}
