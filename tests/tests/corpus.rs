//! Real configurations of two control planes: each is accepted if it needs only what this version covers, and otherwise refused with an
//! error that names the feature. Nothing may be refused for another reason, and nothing may fail to be read.
//!
//! The files are not part of the tree: `TORUS_CORPUS` names their folder, `../shared/corpus` beside the clone is the default, and where
//! there is none the test says so and passes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use prost::Message;
use torus_proxy::cluster::Cluster;
use torus_proxy::config::discovery::source::{self, GrpcTarget};
use torus_proxy::config::ledger;
use torus_proxy::config::parse::{ParseContext, listener};
use torus_proxy::route::RouteTable;
use torus_xds::subscription::Protocol;
use torus_xds::{Document, Format, MessageType, Source, UnknownFields, encode, encode_list};

#[test]
fn istio_bootstraps() {
    let Some(folder) = corpus("istio-bootstrap") else { return };
    let mut score = Score::default();
    for path in files(&folder, "_golden.json") {
        let text = std::fs::read(&path).expect("a readable file");
        let bootstrap = MessageType::named("envoy.config.bootstrap.v3.Bootstrap").expect("in the schema");
        let source = Source::parse(&name(&path), text).expect("the golden files are JSON");
        match encode(vec![source], bootstrap, UnknownFields::Refuse) {
            Ok(encoded) => score.judge(&path, bootstrap, &[encoded.bytes], |_, _| {}),
            Err(errors) => score.unread(&path, &errors),
        }
    }
    score.print("istio-bootstrap");
}

#[test]
fn envoy_gateway_snapshots() {
    let Some(folder) = corpus("envoy-gateway-xds") else { return };
    let mut score = Score::default();
    for (suffix, message, parse) in KINDS {
        let message = MessageType::named(message).expect("in the schema");
        for path in files(&folder, suffix) {
            let text = std::fs::read_to_string(&path).expect("a readable file");
            let document = Document::parse(&name(&path), text, Format::Yaml).unwrap_or_else(|error| panic!("{error}"));
            match encode_list(&document, message, UnknownFields::Refuse) {
                Ok(messages) => score.judge(&path, message, &messages, parse),
                Err(errors) => score.unread(&path, &errors),
            }
        }
    }
    score.print("envoy-gateway-xds");
}

type Parse = fn(&[u8], &mut ParseContext);

/// What the lists hold, by the ends of their files' names.
const KINDS: [(&str, &str, Parse); 5] = [
    (".listeners.yaml", "envoy.config.listener.v3.Listener", |bytes, context| {
        let _ = listener::parse(&ListenerProto::decode(bytes).expect("just written"), context);
    }),
    (".routes.yaml", "envoy.config.route.v3.RouteConfiguration", |bytes, context| {
        let _ = RouteTable::parse(&RouteConfiguration::decode(bytes).expect("just written"), context);
    }),
    (".clusters.yaml", "envoy.config.cluster.v3.Cluster", |bytes, context| {
        let _ = Cluster::parse(&ClusterProto::decode(bytes).expect("just written"), context);
    }),
    (".endpoints.yaml", "envoy.config.endpoint.v3.ClusterLoadAssignment", |_, _| {}),
    (".secrets.yaml", "envoy.extensions.transport_sockets.tls.v3.Secret", |_, _| {}),
];

/// Problems that Envoy 1.40 has too: "Only a single wildcard domain is permitted in route first-listener", "filter chain
/// 'tcp-route-simple-1' has the same matching rules defined as 'tcp-route-simple'".
const REFUSED_BY_ENVOY: [&str; 2] = [
    "client-timeout.routes.yaml: virtual_hosts[1].domains[0]: another virtual host has the domain `*` already",
    "multiple-simple-tcp-route-same-port.listeners.yaml: filter_chains[1].filter_chain_match: has the same matching rules as \
     `tcp-route-simple`, so a connection could go to either",
];

/// The snapshots name files of the machine that they are made for; Envoy refuses to start without them too.
const FILE_OF_ANOTHER_MACHINE: &str = "cannot read `/certs/ca.crt`: No such file or directory (os error 2)";

/// How a feature is refused that the fields alone do not show, as where the first policy that is there is taken.
const NOT_THERE_YET: &str = " is not there yet in this version";

/// What became of the files of one folder.
#[derive(Default)]
struct Score {
    accepted: usize,
    refused: usize,
    refused_by_envoy: usize,
    /// How many files need a feature.
    features: BTreeMap<String, usize>,
    unexplained: Vec<String>,
}

impl Score {
    fn judge(&mut self, path: &Path, message: MessageType, messages: &[Vec<u8>], parse: Parse) {
        let mut missing = BTreeSet::new();
        for bytes in messages {
            missing.extend(ledger::refusals(message, bytes).into_iter().map(|refusal| refusal.feature));
        }
        if !missing.is_empty() {
            self.refused += 1;
            for feature in missing {
                *self.features.entry(feature).or_default() += 1;
            }
            return;
        }
        let mut context = ParseContext::new(1);
        // A list of routes comes without its clusters.
        context.validate_clusters = false;
        // The lists are what a control plane sends.
        context.sources.place(source::Source::Ads(GrpcTarget {
            protocol: Protocol::Sotw,
            servers: [source::Server::Cluster("control-plane".into())].into(),
            node_once: false,
        }));
        (context.node.id, context.node.cluster) = ("test".into(), "test".into());
        for bytes in messages {
            parse(bytes, &mut context);
        }
        let problems: Vec<String> =
            context.problems.iter().map(|problem| format!("{}: {problem}", name(path))).collect();
        let feature = problems.iter().find_map(|problem| problem.rsplit(": ").next()?.strip_suffix(NOT_THERE_YET));
        if let Some(feature) = feature {
            self.refused += 1;
            *self.features.entry(feature.to_owned()).or_default() += 1;
            return;
        }
        let (known, unexplained): (Vec<_>, Vec<_>) = problems.into_iter().partition(|problem| {
            REFUSED_BY_ENVOY.contains(&problem.as_str()) || problem.ends_with(FILE_OF_ANOTHER_MACHINE)
        });
        self.refused_by_envoy += known.len();
        self.accepted += usize::from(known.is_empty() && unexplained.is_empty());
        self.unexplained.extend(unexplained);
    }

    fn unread(&mut self, path: &Path, errors: &[torus_xds::Diagnostic]) {
        self.unexplained.extend(errors.iter().map(|error| format!("{}: {}", name(path), error.line())));
    }

    fn print(&self, folder: &str) {
        let (accepted, refused, unexplained) = (self.accepted, self.refused, self.unexplained.len());
        let by_envoy = self.refused_by_envoy;
        println!(
            "{folder}: {accepted} files accepted, {refused} refused by feature, {by_envoy} refused as Envoy refuses them, \
             {unexplained} unexplained"
        );
        let mut features: Vec<_> = self.features.iter().collect();
        features.sort_by_key(|(feature, count)| (std::cmp::Reverse(**count), *feature));
        for (feature, count) in features {
            println!("  {count:4} need {feature}");
        }
        assert!(self.unexplained.is_empty(), "{}", self.unexplained.join("\n"));
        assert!(accepted + refused > 0, "{folder} has no files");
    }
}

fn corpus(folder: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let root = std::env::var_os("TORUS_CORPUS").map_or(beside, PathBuf::from);
    let folder = root.join(folder);
    if !folder.is_dir() {
        println!("skipped: {} is not there; TORUS_CORPUS can name the corpus", folder.display());
        return None;
    }
    Some(folder)
}

fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a readable folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| name(path).ends_with(suffix)).collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
