//! Snapshots that Envoy Gateway makes, pushed by ADS: accepted and live, or refused by the name of the feature that is missing.

mod plane;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plane::*;
use torus_xds::{Document, Format, MessageType, UnknownFields, encode_list};

const PARTS: [(&str, &str); 5] = [
    (".clusters.yaml", CLUSTER),
    (".endpoints.yaml", ENDPOINTS),
    (".listeners.yaml", LISTENER),
    (".routes.yaml", ROUTES),
    (".secrets.yaml", SECRET),
];

fn folder() -> Option<PathBuf> {
    let root = std::env::var_os("TORUS_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"), PathBuf::from);
    let folder = root.join("envoy-gateway-xds");
    folder.is_dir().then_some(folder)
}

/// The file with free ports in place of those that listeners bind, and these ports.
fn with_free_ports(text: &str, ports: &mut BTreeMap<String, u16>) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.split_once("portValue: ") {
            Some((before, number)) => {
                let port = ports.entry(number.trim().to_owned()).or_insert_with(free_port);
                lines.push(format!("{before}portValue: {port}"));
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

#[test]
fn snapshots_of_envoy_gateway_are_live_or_refused_by_feature() {
    let Some(folder) = folder() else { return println!("skipped: there is no corpus; set TORUS_CORPUS") };
    let files = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let names: BTreeSet<String> =
        files.filter_map(|file| file.strip_suffix(".listeners.yaml").map(str::to_owned)).collect();
    let plane = Plane::new();
    let plane_port = free_port();
    let _server = plane.serve(SocketAddr::from(([127, 0, 0, 1], plane_port)));
    let _proxy = Proxy::start("GRPC", plane_port);
    wait_for("the first requests", || plane.verdict().is_some_and(|verdict| verdict.contains_key(LISTENER)));
    let (mut live, mut accepted, mut refused) = (0, 0, 0);
    let mut features: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        let (mut world, mut ports) = (World::new(), BTreeMap::new());
        for (suffix, kind) in PARTS {
            let path = folder.join(format!("{name}{suffix}"));
            let Ok(mut text) = std::fs::read_to_string(&path) else { continue };
            if kind == LISTENER {
                text = with_free_ports(&text, &mut ports);
            }
            let document = Document::parse(&path.to_string_lossy(), text, Format::Yaml).unwrap();
            let message = MessageType::named(kind).unwrap();
            let all =
                encode_list(&document, message, UnknownFields::Refuse).unwrap_or_else(|error| panic!("{error:?}"));
            let named = all.into_iter().map(|encoded| (name_of(&encoded), encoded));
            world.insert(kind, named.collect());
        }
        plane.replace(world);
        wait_for(name, || plane.verdict().is_some());
        let bound: Vec<u16> = ports.into_values().collect();
        let is_open = |port: &u16| ["127.0.0.1", "::1"].iter().any(|host| TcpStream::connect((*host, *port)).is_ok());
        // Its routes and secrets are asked for when it is there.
        let deadline = Instant::now() + Duration::from_secs(1);
        let refusals = || plane.verdict().unwrap_or_default().into_values().flatten().collect::<Vec<String>>();
        while refusals().is_empty() && !bound.iter().any(is_open) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let refusals = refusals();
        if refusals.is_empty() {
            accepted += 1;
            live += usize::from(bound.iter().any(is_open));
            if !bound.iter().any(is_open) {
                println!("{name} is not open");
            }
        } else {
            refused += 1;
            for line in refusals.iter().flat_map(|refusal| refusal.lines()) {
                let words = line.trim_end_matches("not there yet in this version").trim_end_matches([' ', ':']);
                let words = words.trim_end_matches(" is");
                let feature = words.rsplit(": ").next().unwrap_or(line);
                *features.entry(feature.to_owned()).or_default() += 1;
            }
        }
    }
    println!("{} snapshots: {accepted} accepted, {live} of them with an open listener; {refused} refused", names.len());
    let mut features: Vec<_> = features.into_iter().collect();
    features.sort_by_key(|(feature, count)| (std::cmp::Reverse(*count), feature.clone()));
    features.iter().for_each(|(feature, count)| println!("  {count:4} resources: {feature}"));
    assert!(accepted > 0 && accepted == live && accepted + refused == names.len());
}
