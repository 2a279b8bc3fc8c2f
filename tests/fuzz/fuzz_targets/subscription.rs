//! Events in any order, from a server that says anything: a subscription never panics, and ends with nothing left to say.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use torus_xds::subscription::{Protocol, Rejection, Resource, Response, Subscription};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, events)) = bytes.split_first() else { return };
    let protocol = if first & 1 == 0 { Protocol::Sotw } else { Protocol::Delta };
    let mut now = Instant::now();
    let mut subscription = Subscription::new("t", protocol, first & 2 != 0, Duration::from_secs(u64::from(first >> 4)));
    let name = |bits: u8| -> Box<str> { ["a", "b", "c", "*"][usize::from(bits & 3)].into() };
    for event in events.chunks(3) {
        let [kind, one, two] = [0, 1, 2].map(|at| event.get(at).copied().unwrap_or_default());
        match kind % 9 {
            0 => subscription.open(now),
            1 => subscription.close(),
            2 => subscription.subscribe_all(now),
            3 => drop(subscription.unsubscribe_all()),
            4 => subscription.set_names([&*name(one), &*name(two)], now),
            5 => subscription.ask_again(&name(one), now),
            6 => {
                now += Duration::from_secs(u64::from(one));
                subscription.poll_missing(now);
                subscription.poll_expired(now);
            }
            7 => {
                let resource = |bits: u8| Resource {
                    name: name(bits),
                    type_url: if bits & 4 == 0 { "t".into() } else { "u".into() },
                    body: (bits & 8 == 0).then(Vec::new),
                    ttl: (bits & 16 != 0).then_some(Duration::from_secs(u64::from(bits >> 5))),
                    ..Resource::default()
                };
                let response = Response {
                    nonce: name(kind),
                    resources: vec![resource(one), resource(two)],
                    removed: (kind & 128 != 0).then(|| name(two >> 2)).into_iter().collect(),
                    ..Response::default()
                };
                if subscription.on_response(response, now).is_ok() && kind & 64 == 0 {
                    let bad = Rejection { name: name(one), reason: "bad".into() };
                    subscription.conclude(if one & 32 == 0 { &[] } else { std::slice::from_ref(&bad) });
                }
            }
            _ => drop(subscription.poll_request()),
        }
    }
    subscription.conclude(&[]);
    while subscription.poll_request().is_some() {}
});
