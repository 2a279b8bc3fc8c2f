use super::*;

fn names(names: &str) -> Vec<Box<str>> {
    names.split_whitespace().map(Into::into).collect()
}

/// `a=1 b=2` as resources.
fn resources(text: &str) -> Vec<Resource> {
    text.split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, version)| Resource { name: name.into(), version: version.parse().unwrap(), body: Vec::new() })
        .collect()
}

fn shown(push: Option<Push>) -> String {
    let Some(push) = push else { return "nothing".to_owned() };
    let mut parts: Vec<String> =
        push.resources.iter().map(|resource| format!("{}={}", resource.name, resource.version)).collect();
    parts.extend(push.removed.iter().map(|name| format!("-{name}")));
    format!("#{} {}", push.nonce, parts.join(" "))
}

/// Plays `steps` on one subscription: `ask NAMES`, `drop NAMES`, `ack N [NAMES]`, `nack N [NAMES]`, `parent`, and `have RESOURCES` for a
/// change; each with what is pushed then.
fn check(variant: Variant, scope: Scope, steps: &[(&str, &str)]) {
    let mut subscription = Subscription::new(variant, scope);
    let mut have = String::new();
    for (index, (step, wanted)) in steps.iter().enumerate() {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let (nonce, listed) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut tell = |ask: Ask| {
            subscription.on_request(ask);
        };
        match verb {
            "ask" => tell(Ask { names: names(rest), ..Ask::default() }),
            "drop" => tell(Ask { unsubscribed: names(rest), ..Ask::default() }),
            "ack" => tell(Ask { names: names(listed), nonce: nonce.into(), ..Ask::default() }),
            "nack" => {
                tell(Ask { names: names(listed), nonce: nonce.into(), refusal: Some("bad".into()), ..Ask::default() })
            }
            "parent" => subscription.on_parent_pushed(),
            "have" => {
                have = rest.to_owned();
                subscription.on_change();
            }
            // `some NAMES: RESOURCES`
            "some" => {
                let (changed, all) = rest.split_once(": ").unwrap();
                have = all.to_owned();
                subscription.on_some_changed(&names(changed));
            }
            _ => panic!("{verb}"),
        }
        let push = if subscription.is_due() {
            let wanted = subscription.wanted_now();
            let known = resources(&have).into_iter().filter(|resource| wanted.contains(&resource.name));
            subscription.push(known.collect())
        } else {
            None
        };
        assert_eq!(shown(push), *wanted, "step {index}: {step}");
    }
}

#[test]
fn state_of_the_world_for_listeners_and_clusters() {
    check(
        Variant::Sotw,
        Scope::World,
        &[
            ("have a=1 b=1", "nothing"),
            ("ask", "#1 a=1 b=1"),
            ("have a=2 b=1", "nothing"), // one push outstanding
            ("ack 1", "#2 a=2 b=1"),
            ("ack 1", "nothing"), // stale
            ("ack 2", "nothing"),
            ("have a=2", "#3 a=2"),
            ("nack 3", "nothing"),
            ("have a=2", "nothing"), // the same is not sent again
            ("have a=3", "#4 a=3"),
            ("ack 4 x", "#5 "), // x does not exist: nothing is left
        ],
    );
}

#[test]
fn state_of_the_world_by_name() {
    check(
        Variant::Sotw,
        Scope::Named,
        &[
            ("have a=1 b=1 c=1", "nothing"),
            ("ask a b", "#1 a=1 b=1"),
            ("ack 1 a b", "nothing"),
            ("have a=1 b=2 c=2", "#2 b=2"), // only what changed
            ("ack 2 a b c", "#3 a=1 b=2 c=2"),
            ("ack 3 a", "nothing"), // fewer names need no answer
            ("parent", "nothing"),
            ("ack 3 a", "#4 a=1"), // asked again after its parent changed
            ("ack 4 a", "nothing"),
            ("ack 4 later", "nothing"), // does not exist yet
            ("have later=1", "#5 later=1"),
        ],
    );
}

#[test]
fn differences_with_and_without_a_wildcard() {
    check(
        Variant::Delta,
        Scope::World,
        &[
            ("have a=1 b=1", "nothing"),
            ("ask", "#1 a=1 b=1"),
            ("ack 1", "nothing"),
            ("have a=1 c=1", "#2 c=1 -b"),
            ("have a=2 c=1", "nothing"),
            ("ack 2", "#3 a=2"),
            ("nack 3", "nothing"),
            ("have a=2 c=2", "#4 c=2"),
            ("ack 4", "nothing"),
            ("ask a", "#5 a=2"),
            ("ack 5", "nothing"),
            ("drop a", "#6 a=2"), // still covered by the wildcard
            ("ack 6", "nothing"),
            ("drop *", "nothing"),
            ("have a=3", "nothing"),
        ],
    );
    check(Variant::Delta, Scope::World, &[("ask", "#1 "), ("ack 1", "nothing"), ("have a=1", "#2 a=1")]);
    check(
        Variant::Delta,
        Scope::Named,
        &[
            ("have a=1 b=1", "nothing"),
            ("ask a missing", "#1 a=1 -missing"),
            ("ask b", "nothing"),
            ("ack 1", "#2 b=1"),
            ("ask a", "nothing"),
            ("ack 2", "#3 a=1"), // asked for again: sent again
            ("ack 3", "nothing"),
            ("have a=1 missing=1", "#4 missing=1 -b"),
            ("drop a phantom", "nothing"),
            ("ack 4", "nothing"),
        ],
    );
}

#[test]
fn what_was_refused_together_is_sent_together_once_mended() {
    check(
        Variant::Delta,
        Scope::World,
        &[
            ("have good=1 bad=1", "nothing"),
            ("ask", "#1 bad=1 good=1"),
            ("nack 1", "nothing"),
            ("have good=1 bad=2", "#2 bad=2 good=1"),
        ],
    );
}

#[test]
fn a_client_that_returns_says_what_it_holds() {
    let mut subscription = Subscription::new(Variant::Delta, Scope::World);
    let held = [("a", 7), ("gone", 1)].map(|(name, version)| (name.into(), format_version(version).into()));
    subscription.on_request(Ask { held: held.into(), ..Ask::default() });
    assert_eq!(shown(subscription.push(resources("a=7 b=1"))), "#1 b=1 -gone");
    // A nonce of the stream before is a first request (SotW).
    let mut subscription = Subscription::new(Variant::Sotw, Scope::World);
    assert_eq!(subscription.on_request(Ask { nonce: "17".into(), ..Ask::default() }), Outcome::Subscribed);
    assert_eq!(shown(subscription.push(resources("a=7"))), "#1 a=7");
}

#[test]
fn types_are_pushed_in_order() {
    let mut session = Session::new(Variant::Sotw);
    for type_url in [url::ROUTES, url::LISTENER, url::ENDPOINTS, url::CLUSTER] {
        session.on_request(type_url, Ask { names: vec!["*".into()], ..Ask::default() });
    }
    let mut order = Vec::new();
    while let Some((type_url, _)) = session.next_due() {
        session.push(&type_url, resources("a=1"));
        order.push(type_url);
    }
    assert_eq!(order.iter().map(|url| &**url).collect::<Vec<_>>(), &PUSH_ORDER[..4]);
    assert_eq!(session.get(url::CLUSTER).unwrap().outstanding(), Some("1"));
}

#[test]
fn a_change_of_some_names_pushes_those_alone() {
    for variant in [Variant::Sotw, Variant::Delta] {
        check(
            variant,
            Scope::Named,
            &[
                ("have a=1 b=1 c=1", "nothing"),
                ("ask a b", "#1 a=1 b=1"),
                // Not answered yet, so it waits.
                ("some a: a=2 b=9 c=1", "nothing"),
                ("ack 1 a b", if variant == Variant::Sotw { "#2 a=2" } else { "#2 a=2 b=9" }),
            ],
        );
    }
    check(
        Variant::Delta,
        Scope::Named,
        &[
            ("have a=1 b=1", "nothing"),
            ("ask a b", "#1 a=1 b=1"),
            ("ack 1", "nothing"),
            ("some a: a=2 b=9", "#2 a=2"),
            ("ack 2", "nothing"),
            ("some c: a=2 b=9 c=1", "nothing"),
            ("some a: a=2 b=9", "nothing"),
            ("some a: b=9", "#3 -a"),
            // What was refused is sent again with whatever mends it.
            ("nack 3", "nothing"),
            ("some b: b=10", "#4 b=10"),
        ],
    );
}
