//! `x-forwarded-client-cert`: what a proxy says of its client's certificate.
//!
//! Source: Envoy's documentation, "x-forwarded-client-cert". Values that hold a separator are quoted, so that a name in a
//! certificate never passes for another key.

use torus_codec::{HeaderMap, Known};

use crate::transport::TlsInfo;

/// What happens to the field. Source: HttpConnectionManager.ForwardClientCertDetails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// It is removed.
    #[default]
    Sanitize,
    /// It is passed on from clients with a certificate.
    ForwardOnly,
    /// It is passed on from clients with a certificate, and theirs is added.
    AppendForward,
    /// It is replaced by what their certificate says.
    SanitizeSet,
    /// It is passed on from everybody.
    AlwaysForwardOnly,
}

/// Which parts are written besides `By` and `Hash`. Source: HttpConnectionManager.SetCurrentClientCertDetails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    /// `Cert`
    pub cert: bool,
    /// `Chain`
    pub chain: bool,
    /// `Subject`
    pub subject: bool,
    /// `URI`
    pub uri: bool,
    /// `DNS`
    pub dns: bool,
}

/// Applies the rule to a request.
pub(super) fn apply(
    mode: ForwardClientCert,
    details: ClientCertDetails,
    tls: Option<&TlsInfo>,
    headers: &mut HeaderMap,
    scratch: &mut Vec<u8>,
) {
    if mode == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let (Some(tls), Some(peer)) = (tls, peer) else {
        headers.remove_known(Known::XForwardedClientCert);
        return;
    };
    match mode {
        ForwardClientCert::AlwaysForwardOnly | ForwardClientCert::ForwardOnly => return,
        ForwardClientCert::Sanitize => {
            headers.remove_known(Known::XForwardedClientCert);
            return;
        }
        ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet => {}
    }
    scratch.clear();
    if mode == ForwardClientCert::AppendForward
        && let Some(earlier) = headers.get_known(Known::XForwardedClientCert).filter(|earlier| !earlier.is_empty())
    {
        scratch.extend_from_slice(earlier);
        scratch.push(b',');
    }
    let from = scratch.len();
    for uri in tls.local.iter().flat_map(|local| &local.uris) {
        element(scratch, from, "By=", uri);
    }
    element(scratch, from, "Hash=", &peer.fingerprint);
    // The escapes leave nothing in a PEM text that would end the quotes.
    for (key, text) in [
        ("Cert=\"", details.cert.then(|| peer.escaped_pem())),
        ("Chain=\"", details.chain.then(|| peer.escaped_chain())),
    ] {
        let Some(text) = text else { continue };
        separate(scratch, from);
        scratch.extend_from_slice(key.as_bytes());
        scratch.extend_from_slice(text.as_bytes());
        scratch.push(b'"');
    }
    if details.subject {
        separate(scratch, from);
        scratch.extend_from_slice(b"Subject=\"");
        // RFC 4514 has escaped its quotes already.
        scratch.extend_from_slice(peer.subject.as_bytes());
        scratch.push(b'"');
    }
    // Without any the key stands alone, as in Envoy.
    if details.uri && peer.uris.is_empty() {
        element(scratch, from, "URI=", "");
    }
    for uri in peer.uris.iter().filter(|_| details.uri) {
        element(scratch, from, "URI=", uri);
    }
    for name in peer.dns_names.iter().filter(|_| details.dns) {
        element(scratch, from, "DNS=", name);
    }
    headers.set_known(Known::XForwardedClientCert, scratch);
}

fn separate(out: &mut Vec<u8>, from: usize) {
    if out.len() > from {
        out.push(b';');
    }
}

fn element(out: &mut Vec<u8>, from: usize, key: &str, value: &str) {
    separate(out, from);
    out.extend_from_slice(key.as_bytes());
    if value.bytes().any(|byte| matches!(byte, b',' | b';' | b'=' | b'"' | b'\\')) {
        out.push(b'"');
        for byte in value.bytes() {
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'"');
    } else {
        out.extend_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tls::Identity;

    fn tls(with_peer: bool) -> TlsInfo {
        let peer = Identity {
            uris: vec!["spiffe://a/client".into(), "urn:x;By=forged".into()],
            dns_names: vec!["client.example".into()],
            subject: "CN=client,O=A".into(),
            fingerprint: "ab12".into(),
            ..Identity::default()
        };
        let local = Identity { uris: vec!["spiffe://a/proxy".into()], ..Identity::default() };
        TlsInfo { peer: with_peer.then(|| Arc::new(peer)), local: Some(Arc::new(local)), ..TlsInfo::default() }
    }

    #[test]
    fn every_mode_with_and_without_a_client_certificate() {
        use ForwardClientCert as Mode;
        let own = "By=spiffe://a/proxy;Hash=ab12;Subject=\"CN=client,O=A\";URI=spiffe://a/client;\
                   URI=\"urn:x;By=forged\";DNS=client.example";
        let appended = format!("By=earlier,{own}");
        let check = |mode, tls: Option<TlsInfo>, expect: Option<&str>| {
            let mut headers = HeaderMap::default();
            headers.set_known(Known::XForwardedClientCert, b"By=earlier");
            let details = ClientCertDetails { subject: true, uri: true, dns: true, ..Default::default() };
            apply(mode, details, tls.as_ref(), &mut headers, &mut Vec::new());
            let value = headers.get_known(Known::XForwardedClientCert);
            assert_eq!(value, expect.map(str::as_bytes), "{mode:?}");
        };
        for without in [None, Some(tls(false))] {
            check(Mode::Sanitize, without.clone(), None);
            check(Mode::ForwardOnly, without.clone(), None);
            check(Mode::AppendForward, without.clone(), None);
            check(Mode::SanitizeSet, without.clone(), None);
            check(Mode::AlwaysForwardOnly, without, Some("By=earlier"));
        }
        check(Mode::Sanitize, Some(tls(true)), None);
        check(Mode::ForwardOnly, Some(tls(true)), Some("By=earlier"));
        check(Mode::AppendForward, Some(tls(true)), Some(&appended));
        check(Mode::SanitizeSet, Some(tls(true)), Some(own));
        check(Mode::AlwaysForwardOnly, Some(tls(true)), Some("By=earlier"));
    }

    #[test]
    fn certificates_are_told_as_escaped_pem() {
        let (first, second) = (vec![0xff; 49], vec![0; 2]);
        let peer = Identity {
            fingerprint: "ab12".into(),
            chain: Arc::from([first.into(), second.into()]),
            ..Identity::default()
        };
        let tls = TlsInfo { peer: Some(Arc::new(peer)), ..TlsInfo::default() };
        // 64 characters a line (RFC 7468 §2).
        let line = "%2F".repeat(64);
        let (begin, end) = ("-----BEGIN%20CERTIFICATE-----%0A", "%0A-----END%20CERTIFICATE-----%0A");
        let cert = format!("{begin}{line}%0A%2Fw%3D%3D{end}");
        let check = |cert_on, chain_on, expect: &str| {
            let details = ClientCertDetails { cert: cert_on, chain: chain_on, ..Default::default() };
            let mut headers = HeaderMap::default();
            apply(ForwardClientCert::SanitizeSet, details, Some(&tls), &mut headers, &mut Vec::new());
            let value = headers.get_known(Known::XForwardedClientCert).unwrap_or_default();
            assert_eq!(std::str::from_utf8(value), Ok(expect));
        };
        check(true, false, &format!("Hash=ab12;Cert=\"{cert}\""));
        check(true, true, &format!("Hash=ab12;Cert=\"{cert}\";Chain=\"{cert}{begin}AAA%3D{end}\""));
    }
}
