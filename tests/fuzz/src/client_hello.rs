//! What must hold for the first bytes of any connection, shared by the fuzz target and the replay of its seeds.

use torus_proxy::listener::client_hello::{ClientHello, client_hello};

/// A verdict does not change with bytes that come later, and a limit is kept.
pub fn check(data: &[u8]) {
    for limit in [16 * 1024, 64] {
        let whole = client_hello(data, limit);
        let mut settled = None;
        for cut in 0..=data.len() {
            let verdict = client_hello(&data[..cut], limit);
            match &settled {
                None if verdict == ClientHello::Incomplete => {}
                None => settled = Some(verdict),
                Some(before) => assert_eq!(&verdict, before, "cut at {cut}"),
            }
        }
        assert_eq!(settled.unwrap_or(ClientHello::Incomplete), whole);
        if let ClientHello::Complete(found) = whole {
            assert!(found.is_tls);
            let name = found.server_name.as_deref().unwrap_or("a");
            assert!(!name.is_empty() && !name.contains('\0') && name.to_ascii_lowercase() == name);
            assert!(found.application_protocols.iter().all(|protocol| !protocol.is_empty()));
        }
    }
}
