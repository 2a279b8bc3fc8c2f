use super::*;

const TYPE: &str = "type.googleapis.com/t";

/// A client of one subscription, and a log of what it says and does.
struct Client {
    subscription: Subscription,
    start: Instant,
    now: Instant,
}

fn client(protocol: Protocol, absence_deletes: bool) -> Client {
    let now = Instant::now();
    let subscription = Subscription::new(TYPE, protocol, absence_deletes, Duration::from_secs(15));
    Client { subscription, start: now, now }
}

fn resource(name: &str) -> Resource {
    // `name@version`, `name@version/ttl seconds`; a heartbeat begins with `~`.
    let (name, heartbeat) = name.strip_prefix('~').map_or((name, false), |name| (name, true));
    let (name, ttl) = name.split_once('/').map_or((name, None), |(name, ttl)| (name, Some(ttl.parse().unwrap())));
    let (name, version) = name.split_once('@').unwrap_or((name, ""));
    Resource {
        name: name.into(),
        version: version.into(),
        type_url: TYPE.into(),
        body: (!heartbeat).then(Vec::new),
        ttl: ttl.map(Duration::from_secs),
    }
}

impl Client {
    /// One step of a script. What comes back is shown as text.
    fn step(&mut self, step: &str) -> String {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let words = || rest.split_whitespace();
        match verb {
            "open" => self.subscription.open(self.now),
            "close" => self.subscription.close(),
            "all" => self.subscription.subscribe_all(self.now),
            "none" => {
                let gone = self.subscription.unsubscribe_all();
                return format!("{gone:?}").replace('"', "");
            }
            "names" => self.subscription.set_names(words(), self.now),
            "again" => self.subscription.ask_again(rest, self.now),
            "at" => self.now = self.start + Duration::from_secs(rest.parse().unwrap()),
            // got VERSION NONCE resource... -removed...
            "got" => {
                let mut words = words();
                let mut response = Response {
                    version: words.next().unwrap().into(),
                    nonce: words.next().unwrap().into(),
                    ..Response::default()
                };
                for word in words {
                    match word.strip_prefix('-') {
                        Some(name) => response.removed.push(name.into()),
                        None => response.resources.push(resource(word)),
                    }
                }
                return match self.subscription.on_response(response, self.now) {
                    Ok(received) => {
                        let updated = received.updated.iter().map(|it| format!("+{}", it.name));
                        let removed = received.removed.iter().map(|name| format!("-{name}"));
                        updated.chain(removed).collect::<Vec<_>>().join(" ")
                    }
                    Err(reason) => format!("refused: {reason}"),
                };
            }
            "take" => {
                let rejections: Vec<Rejection> =
                    words().map(|name| Rejection { name: name.into(), reason: "f: bad".to_owned() }).collect();
                self.subscription.conclude(&rejections);
            }
            "missing" => return self.subscription.poll_missing(self.now).join(" "),
            "expired" => return self.subscription.poll_expired(self.now).join(" "),
            "asks" => return self.subscription.poll_request().map_or("nothing".to_owned(), |ask| shown(&ask)),
            other => panic!("no step {other}"),
        }
        String::new()
    }
}

fn shown(ask: &Ask) -> String {
    let mut parts = Vec::new();
    match &ask.body {
        Body::Sotw { version, resource_names } => {
            parts.push(format!("v={version}"));
            parts.push(format!("[{}]", resource_names.join(" ")));
        }
        Body::Delta { subscribe, unsubscribe, initial_versions } => {
            parts.push(format!("+[{}]", subscribe.join(" ")));
            if !unsubscribe.is_empty() {
                parts.push(format!("-[{}]", unsubscribe.join(" ")));
            }
            if !initial_versions.is_empty() {
                let versions: Vec<String> =
                    initial_versions.iter().map(|(name, version)| format!("{name}@{version}")).collect();
                parts.push(format!("has[{}]", versions.join(" ")));
            }
        }
    }
    if !ask.nonce.is_empty() {
        parts.push(format!("n={}", ask.nonce));
    }
    if let Some(nack) = &ask.refusal {
        parts.push(format!("NACK {}", nack.message.replace('\n', "; ")));
    }
    parts.join(" ")
}

/// Runs `script`: lines `step` or `step => what comes back`.
fn check(protocol: Protocol, absence_deletes: bool, script: &str) {
    let mut client = client(protocol, absence_deletes);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (step, expected) = line.split_once("=>").unwrap_or((line, ""));
        assert_eq!(client.step(step.trim()), expected.trim(), "{line}\nin\n{script}");
    }
}

fn sotw(script: &str) {
    check(Protocol::Sotw, false, script);
}

fn sotw_all(script: &str) {
    check(Protocol::Sotw, true, script);
}

fn delta(script: &str) {
    check(Protocol::Delta, false, script);
}

#[test]
fn nothing_is_asked_before_something_is_wanted() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        check(protocol, false, "asks => nothing\n open\n asks => nothing\n all\n names");
    }
    sotw("open\n asks => nothing\n names a\n asks => v= [a]\n asks => nothing");
    delta("open\n asks => nothing\n names a\n asks => +[a]\n asks => nothing");
    sotw("names a\n asks => nothing\n open\n asks => v= [a]");
}

#[test]
fn an_accepted_answer_is_acknowledged_with_its_version_and_nonce() {
    sotw(
        "names a\n open\n asks => v= [a]\n got 1 n1 a => +a\n asks => nothing\n take\n asks => v=1 [a] n=n1\n asks => nothing",
    );
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 => +a\n asks => nothing\n take\n asks => +[] n=n1\n asks => nothing",
    );
}

#[test]
fn a_refused_answer_keeps_the_former_version() {
    sotw(
        "names a b\n open\n asks => v= [a b]\n got 1 n1 a => +a\n take\n asks => v=1 [a b] n=n1
         got 2 n2 a b => +a +b\n take b\n asks => v=1 [a b] n=n2 NACK b: f: bad
         got 3 n3 b => +b\n take\n asks => v=3 [a b] n=n3",
    );
    // In delta what was good of a refused answer is had in its new version, what was bad in the former one.
    delta(
        "names a b\n open\n asks => +[a b]\n got 1 n1 a@1 b@1 => +a +b\n take\n asks => +[] n=n1
         got 2 n2 a@2 b@2 => +a +b\n take b\n asks => +[] n=n2 NACK b: f: bad
         close\n open\n asks => +[a b] has[a@2 b@1]",
    );
    delta(
        "names a b\n open\n asks => +[a b]\n got 1 n1 a@1 b@1 => +a +b\n take a b
         asks => +[] n=n1 NACK a: f: bad; b: f: bad\n close\n open\n asks => +[a b]",
    );
}

#[test]
fn duplicates_and_wrong_types_are_refused_as_a_whole() {
    sotw(
        "names a\n open\n asks => v= [a]\n got 1 n1 a a => refused: a: is there twice
         asks => v= [a] n=n1 NACK a: is there twice",
    );
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 a@2 => refused: a: is there twice
         asks => +[] n=n1 NACK a: is there twice
         got 1 n2 a@1 -a => refused: a: is both there and removed
         asks => +[] n=n2 NACK a: is both there and removed",
    );
    let mut client = client(Protocol::Sotw, false);
    client.step("names a");
    client.step("open");
    let other = Resource { type_url: "other".into(), ..resource("a") };
    let response = Response { nonce: "n".into(), resources: vec![other], ..Response::default() };
    let refused = client.subscription.on_response(response, client.now);
    assert_eq!(refused, Err(format!("a: has type `other` in an answer of type `{TYPE}`")));
}

#[test]
fn every_delta_answer_is_acknowledged_and_only_the_newest_of_sotw() {
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 => +a\n take\n got 2 n2 a@2 => +a\n take
         asks => +[] n=n1\n asks => +[] n=n2\n asks => nothing",
    );
    sotw(
        "names a\n open\n asks => v= [a]\n got 1 n1 a => +a\n take\n got 2 n2 a => +a\n take
         asks => v=2 [a] n=n2\n asks => nothing",
    );
}

#[test]
fn a_change_of_names_carries_the_newest_nonce_in_sotw_and_none_in_delta() {
    sotw(
        "names a\n open\n asks => v= [a]\n got 1 n1 a => +a\n take\n asks => v=1 [a] n=n1
         names a b\n asks => v=1 [a b] n=n1\n names b\n asks => v=1 [b] n=n1\n names\n asks => v=1 [] n=n1",
    );
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 => +a\n take\n asks => +[] n=n1
         names a b\n asks => +[b]\n names b\n asks => +[] -[a]\n names\n asks => +[] -[b]\n asks => nothing",
    );
    // A change meets an acknowledgement: one request carries both.
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 => +a\n take\n names a b\n asks => +[b] n=n1\n asks => nothing",
    );
    // What was not told yet need not be taken back.
    delta("names a\n open\n asks => +[a]\n names a b\n names a\n asks => +[] -[b]");
    delta("names a b\n names a\n open\n asks => +[a]\n asks => nothing");
}

/// The four steps of the documentation, "How the client specifies what resources to return".
#[test]
fn wildcards_follow_the_four_steps() {
    sotw_all(
        "all\n open\n asks => v= []\n got 1 n1 a b => +a +b\n take\n asks => v=1 [] n=n1
         names a\n asks => v=1 [* a] n=n1\n none => [b]\n asks => v=1 [a] n=n1\n names\n asks => v=1 [] n=n1",
    );
    delta(
        "all\n open\n asks => +[]\n got 1 n1 a@1 b@1 => +a +b\n take\n asks => +[] n=n1
         names a\n asks => +[a]\n none => [b]\n asks => +[] -[*]\n names\n asks => +[] -[a]",
    );
    // Once names were sent, everything has to be asked for by its name.
    sotw_all("names a\n open\n asks => v= [a]\n all\n asks => v= [* a]\n names\n asks => v= [*]");
    delta("names a\n open\n asks => +[a]\n all\n asks => +[*]\n names\n asks => +[] -[a]");
    // A new stream begins anew.
    sotw_all("names a\n all\n open\n asks => v= [* a]\n names\n asks => v= [*]\n close\n open\n asks => v= []");
    delta("names a\n all\n open\n asks => +[* a]\n names\n asks => +[] -[a]\n close\n open\n asks => +[]");
}

#[test]
fn absence_deletes_listeners_and_clusters_alone() {
    sotw_all(
        "all\n open\n asks => v= []\n got 1 n1 a b => +a +b\n take\n asks => v=1 [] n=n1
         got 2 n2 b c => +b +c -a\n take\n asks => v=2 [] n=n2\n got 3 n3 => -b -c\n take\n asks => v=3 [] n=n3",
    );
    sotw(
        "names a b\n open\n asks => v= [a b]\n got 1 n1 a b => +a +b\n take\n asks => v=1 [a b] n=n1
         got 2 n2 b => +b\n take\n asks => v=2 [a b] n=n2",
    );
    // An answer that is refused as a whole deletes nothing.
    sotw_all(
        "all\n open\n asks => v= []\n got 1 n1 a b => +a +b\n take\n asks => v=1 [] n=n1
         got 2 n2 c c => refused: c: is there twice\n asks => v=1 [] n=n2 NACK c: is there twice
         got 3 n3 b => +b -a",
    );
}

#[test]
fn delta_removes_what_it_names() {
    delta(
        "all\n open\n asks => +[]\n got 1 n1 a@1 b@1 => +a +b\n take\n asks => +[] n=n1
         got 2 n2 -a -x => -a -x\n take\n asks => +[] n=n2\n close\n open\n asks => +[] has[b@1]",
    );
    // A name that was asked for and is not there is told as removed, and no longer waited for.
    delta("names a\n open\n asks => +[a]\n got 1 n1 -a => -a\n take\n at 20\n missing =>");
    // What does not exist may come later.
    delta("names a\n open\n asks => +[a]\n got 1 n1 -a => -a\n take\n asks => +[] n=n1\n got 2 n2 a@1 => +a");
}

#[test]
fn what_was_not_asked_for_is_ignored() {
    sotw("names a\n open\n asks => v= [a]\n got 1 n1 a b => +a\n take\n asks => v=1 [a] n=n1");
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 b@1 => +a\n take\n asks => +[] n=n1\n close\n open\n asks => +[a] has[a@1]",
    );
}

#[test]
fn a_new_stream_repeats_versions_and_forgets_the_nonce() {
    sotw(
        "names a\n open\n asks => v= [a]\n got 1 n1 a => +a\n take\n asks => v=1 [a] n=n1
         close\n asks => nothing\n open\n asks => v=1 [a]",
    );
    delta(
        "names a b\n open\n asks => +[a b]\n got 1 n1 a@7 => +a\n take\n asks => +[] n=n1\n names a c
         close\n open\n asks => +[a c] has[a@7]\n asks => nothing",
    );
    // An acknowledgement that was due on the old stream is not sent on the new one.
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@7 => +a\n take\n close\n open\n asks => +[a] has[a@7]\n asks => nothing",
    );
    // An answer that was being judged when the stream ended was not taken.
    sotw("names a\n open\n asks => v= [a]\n got 1 n1 a => +a\n close\n open\n take\n asks => v= [a]\n asks => nothing");
}

#[test]
fn a_name_may_be_forgotten_and_asked_for_again() {
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1 => +a\n take\n asks => +[] n=n1
         again a\n asks => +[a]\n got 1 n2 a@1 => +a\n take\n asks => +[] n=n2",
    );
    // Unsubscribed and subscribed again before the server heard of it: it has to answer all the same.
    delta("names a\n open\n asks => +[a]\n names\n names a\n asks => +[a]\n asks => nothing");
}

#[test]
fn what_never_comes_counts_as_missing_after_the_timeout() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        check(
            protocol,
            false,
            "names a b\n open\n at 14\n missing =>\n got 1 n1 a => +a\n take\n at 15\n missing => b\n missing =>",
        );
        check(protocol, true, "all\n open\n at 15\n missing => *\n missing =>");
        check(protocol, true, "all\n open\n got 1 n1 => \n take\n at 15\n missing =>");
        // The time counts from the stream that asks.
        check(protocol, false, "names a\n at 10\n open\n at 20\n missing =>\n at 25\n missing => a");
        // Nobody waits for what is not wanted any more.
        check(protocol, false, "names a\n open\n names\n at 15\n missing =>");
    }
    // A list of all clusters that lacks a name says that it does not exist.
    sotw_all("names a b\n open\n got 1 n1 a => +a -b\n take\n at 15\n missing =>");
    let mut patient = Subscription::new(TYPE, Protocol::Sotw, false, Duration::ZERO);
    let now = Instant::now();
    patient.set_names(["a"], now);
    assert!(patient.poll_missing(now + Duration::from_secs(86_400)).is_empty(), "0 waits for ever");
}

#[test]
fn a_time_to_live_ends_unless_a_heartbeat_extends_it() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        check(
            protocol,
            false,
            "names a\n open\n got 1 n1 a@1/5 => +a\n take\n at 4\n expired =>\n got 1 n2 ~a@1/5 =>\n take\n at 8\n expired =>
             at 9\n expired => a\n expired =>",
        );
        // A heartbeat without a time to live takes it off; one for what is not there does nothing.
        check(
            protocol,
            false,
            "names a\n open\n got 1 n1 a@1/5 => +a\n take\n got 1 n2 ~a@1 =>\n take\n at 9\n expired =>",
        );
        check(protocol, false, "names a\n open\n got 1 n1 ~a@1/5 =>\n take\n at 9\n expired =>");
        // Wildcards have their times too.
        check(protocol, true, "all\n open\n got 1 n1 a@1/5 b@1 => +a +b\n take\n at 5\n expired => a");
    }
    // A heartbeat is no absence.
    sotw_all("all\n open\n got 1 n1 a@1/5 b@1 => +a +b\n take\n got 2 n2 ~a@1/5 ~b@1 =>\n take");
    // What expired is not claimed on the next stream.
    delta(
        "names a\n open\n asks => +[a]\n got 1 n1 a@1/5 => +a\n take\n at 5\n expired => a\n close\n open\n asks => +[a]",
    );
}

#[test]
fn the_node_is_sent_once_where_that_is_asked_for() {
    let now = Instant::now();
    let streams = |node_once| {
        let one = |type_url| {
            let mut one = Subscription::new(type_url, Protocol::Sotw, true, Duration::ZERO);
            one.subscribe_all(now);
            one
        };
        let mut stream = Stream::new(vec![one("c"), one("l")], node_once);
        stream.open(now);
        stream
    };
    let nodes = |stream: &mut Stream| -> Vec<(String, bool)> {
        std::iter::from_fn(|| stream.poll_request()).map(|it| (it.type_url.to_string(), it.with_node)).collect()
    };
    let mut once = streams(true);
    assert_eq!(nodes(&mut once), [("c".to_owned(), true), ("l".to_owned(), false)]);
    once.close();
    once.open(now);
    assert_eq!(nodes(&mut once), [("c".to_owned(), true), ("l".to_owned(), false)], "each stream begins with it");
    assert_eq!(nodes(&mut streams(false)), [("c".to_owned(), true), ("l".to_owned(), true)]);
    assert!(once.on_response("x", Response::default(), now).is_none());
}

#[test]
fn a_refusal_has_a_bounded_length() {
    let nack = Nack::new("é".repeat(10_000));
    assert!(nack.message.len() < 4200 && nack.message.ends_with(" ..."));
}

mod random {
    use proptest::prelude::*;

    use super::*;

    fn step() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("open".to_owned()),
            Just("close".to_owned()),
            Just("all".to_owned()),
            Just("none".to_owned()),
            Just("missing".to_owned()),
            Just("expired".to_owned()),
            Just("asks".to_owned()),
            Just("take".to_owned()),
            "names( [a-c]){0,3}",
            "take( [a-c]){0,2}",
            "again [a-c]",
            "at [0-9]{1,2}",
            "got [1-3] n[1-3]( -?~?[a-c]@[12](/[1-9])?){0,4}",
        ]
    }

    proptest! {
        /// No order of events panics, and every answer is acknowledged or refused exactly once while its stream lasts.
        #[test]
        fn any_order_of_events_is_survived(steps in prop::collection::vec(step(), 0..60), is_delta: bool, all: bool) {
            let protocol = if is_delta { Protocol::Delta } else { Protocol::Sotw };
            let mut client = client(protocol, all);
            let mut at = 0;
            for step in steps {
                // Time goes on.
                let step = match step.strip_prefix("at ") {
                    Some(more) => { at += more.parse::<u64>().unwrap(); format!("at {at}") }
                    None => step,
                };
                client.step(&step);
                prop_assert!(client.subscription.is_consistent(), "after {step}");
            }
            client.step("take");
            for _ in 0..200 {
                if client.step("asks") == "nothing" { break; }
            }
            prop_assert_eq!(client.step("asks"), "nothing");
        }
    }
}
