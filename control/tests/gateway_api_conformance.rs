//! The Gateway API's conformance tests, judged on what torusd writes and pushes: the status of objects, and which backend a request
//! would be sent to by the configuration of the Gateway's own proxy.
//!
//! Steps that change objects end a test here, and what only a running backend can show is not judged.
//! The corpus is read at `../shared/corpus` beside the repository or at `$TORUS_CORPUS`; without it the test says so and passes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use torus_control::evaluate::{Call, Failure, Outcome, Security, Spoken, evaluate};
use torus_control::model::{Mesh, MeshOptions, Proxy, ProxyKind};
use torus_control::source::{Object, read};
use torus_control::translate;

/// Features that are not served, which findings and the status say.
const UNSERVED: &[(&str, &str)] = &[
    ("ListenerSet", "ListenerSets are not served, which a finding says"),
    ("UDPRoute", "UDPRoutes are not served, which a finding says"),
    ("GatewayInfrastructurePropagation", "no pods are made for a Gateway"),
    ("GatewayStaticAddresses", "addresses are the Service's; none are assigned"),
    ("GatewayBackendClientCertificate", "gateways show backends no certificate of their own, as DestinationRules can"),
    ("GatewayFrontendClientCertificateValidationInsecureFallback", "the condition for it is not written"),
    (
        "GatewayHTTPSListenerDetectMisdirectedRequests",
        "a host of another listener on one connection gets 404, as under Istio",
    ),
    ("HTTPRouteBackendURLRewrite", "a rewrite for one backend is refused, and the status says so"),
    ("TLSRouteModeTerminate", "listeners that end TLS take HTTPRoutes and TCPRoutes"),
    ("Mesh", "requests of sidecars are judged by istio-simulation and by the tests with Envoy"),
];

/// Tests by name that are not met.
const DIFFERENT: &[(&str, &str)] = &[(
    "TLSRouteListenerTerminateNotSupported",
    "the listener is accepted, since TCPRoutes attach to it; no TLSRoute does",
)];

/// Tests of whose requests some need a backend that runs, or a time that passes.
const NOT_JUDGED: &[(&str, &str)] = &[
    ("HTTPRouteRetry", "the answer is the backend's failure, repeated"),
    ("HTTPRouteRetryConnectionError", "the answer is the backend's failure, repeated"),
    ("HTTPRouteTimeoutBackendRequest", "the answer is a time that passed"),
    ("BackendTLSPolicy", "the backend's certificate decides"),
    ("BackendTLSPolicyGRPCRoute", "the backend's certificate decides"),
    ("HTTPRouteCORS", "a filter answers, by the fields of the request"),
];

/// The address of a Gateway's proxy.
fn address(index: usize) -> String {
    format!("10.0.0.{index}")
}

fn corpus() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let folder = std::env::var_os("TORUS_CORPUS").map_or_else(beside, PathBuf::from).join("gateway-api-conformance");
    folder.is_dir().then_some(folder)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    path.split('.').try_fold(value, |value, name| value.get(name)).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    let found = path.split('.').try_fold(value, |value, name| value.get(name)).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn to_objects(content: &Value) -> Vec<Object> {
    read("fixtures.json", &content.to_string()).unwrap()
}

fn manifests(folder: &Path, name: &str) -> Vec<Object> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    let text = text
        .replace("{GATEWAY_CLASS_NAME}", "istio")
        .replace("{GATEWAY_CONTROLLER_NAME}", "istio.io/gateway-controller");
    read(name, &text).unwrap_or_else(|findings| panic!("{name}: {findings:?}"))
}

/// The certificates that the suite creates first; what is in them is not looked at here.
fn certificates(fixtures: &Value) -> Vec<Object> {
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let made = list(fixtures, "certificates").iter().map(|certificate| {
        let (secret, map) = (text(certificate, "secretName"), text(certificate, "configMapName"));
        let namespace = text(certificate, "namespace");
        if secret.is_empty() {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map, "namespace": namespace}, "data": {"ca.crt": pem}})
        } else {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": namespace}, "type": "kubernetes.io/tls",
                   "stringData": {"tls.crt": pem, "tls.key": pem.replace("CERTIFICATE", "PRIVATE KEY"), "ca.crt": pem}})
        }
    });
    made.flat_map(|content| to_objects(&content)).collect()
}

/// The Service that Istio makes for a Gateway, with one proxy behind it.
fn service_of(gateway: &Object, address: &str) -> Vec<Object> {
    let (name, namespace) = (format!("{}-istio", gateway.resource.name), &gateway.resource.namespace);
    let numbers: BTreeSet<u64> =
        list(gateway.spec(), "listeners").iter().filter_map(|listener| listener.get("port")?.as_u64()).collect();
    let ports: Vec<Value> = numbers.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let mut made = to_objects(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "LoadBalancer", "ports": ports}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    }));
    made.extend(to_objects(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "ports": ports, "endpoints": [{"addresses": [address]}],
    })));
    made
}

/// A mesh in which one test's manifests are applied.
struct World {
    mesh: Mesh,
    objects: Vec<Object>,
    gateways: Vec<String>,
}

impl World {
    fn status(&self, kind: &str, place: &Value) -> Value {
        let found = self.mesh.statuses.iter().find(|status| {
            let resource = &status.resource;
            resource.kind == kind
                && resource.name == text(place, "name")
                && resource.namespace == text(place, "namespace")
        });
        found.map(|status| status.status.clone()).unwrap_or_default()
    }

    fn gateway(&self, place: &Value) -> &Object {
        let is_it = |object: &&Object| {
            object.resource.kind == "Gateway"
                && object.resource.name == text(place, "name")
                && object.resource.namespace == text(place, "namespace")
        };
        self.objects.iter().find(is_it).unwrap_or_else(|| panic!("no Gateway {place}"))
    }

    /// What the Gateway's proxy does with a request.
    fn outcome(&self, step: &Value, secure: bool) -> Outcome {
        let gateway = self.gateway(&step["to"]["gateway"]);
        let index = self.gateways.iter().position(|known| *known == gateway.resource.to_string());
        let own = address(index.unwrap());
        let listeners = list(gateway.spec(), "listeners");
        let named = listeners.iter().find(|listener| text(listener, "name") == text(&step["to"], "listener"));
        let listener = named.or(listeners.first()).unwrap();
        let port = match text(&step["to"], "port") {
            // Without a port the scheme says it.
            "none" => {
                if secure {
                    443
                } else {
                    80
                }
            }
            "" => step["to"]["port"].as_u64().or(listener["port"].as_u64()).unwrap(),
            port => port.parse().unwrap(),
        };
        let proxy = Proxy {
            kind: ProxyKind::Gateway,
            id: "proxy".to_owned(),
            namespace: gateway.resource.namespace.clone(),
            metadata_namespace: gateway.resource.namespace.clone(),
            labels: BTreeMap::new(),
            ip_addresses: vec![own.clone()],
            locality: String::new(),
            metadata: BTreeMap::new(),
        };
        let is_grpc = text(step, "action") == "grpc-request";
        let request = &step["request"];
        let (host, path, method) = if is_grpc {
            let path = format!("/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/{}", text(step, "method"));
            (text(step, "requestMetadata.authority"), path, "POST")
        } else {
            (text(request, "host"), text(request, "path").to_owned(), text(request, "method"))
        };
        let host = if host.is_empty() { own.as_str() } else { host };
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let mut headers =
            BTreeMap::from([(":method".to_owned(), if method.is_empty() { "GET" } else { method }.to_owned())]);
        let written = if is_grpc { step["requestMetadata"].get("metadata") } else { request.get("headers") };
        for (name, value) in written.and_then(Value::as_object).into_iter().flatten() {
            headers.insert(name.to_lowercase(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        let call = Call {
            address: own.clone(),
            port: u32::try_from(port).unwrap(),
            spoken: if is_grpc { Spoken::Http2 } else { Spoken::Http },
            security: if secure { Security::Tls } else { Security::Plaintext },
            host: host.to_owned(),
            path,
            headers: Some(headers),
            sni: if secure { text(&step["tls"], "serverName") } else { "" }.to_owned(),
            alpn: String::new(),
            inbound: false,
            mesh_certificate: String::new(),
        };
        let listeners: Vec<_> = translate::listeners(&self.mesh, &proxy).into_iter().map(|(_, one)| one).collect();
        let routes: Vec<_> = translate::routes(&self.mesh, &proxy).into_iter().map(|(_, one)| one).collect();
        evaluate(&listeners, &routes, &call)
    }
}

/// Where a request ends: a status of the proxy's own, the backends that may get it, or no answer at all.
#[derive(Debug, PartialEq)]
enum End {
    Status(u64),
    Backends(Vec<String>),
    None,
}

fn end(outcome: &Outcome) -> End {
    match (outcome.failure, outcome.answer) {
        (Some(Failure::NoRoute | Failure::NoVirtualHost), _) => End::Status(404),
        (Some(Failure::TlsRedirect), _) => End::Status(301),
        (Some(_), _) => End::None,
        (None, Some(status)) => End::Status(status.into()),
        // A cluster that does not exist: routes answer 500 then.
        (None, None) if outcome.cluster == "UnknownService" => End::Status(500),
        (None, None) => {
            let split = outcome.split.iter().filter(|(_, weight)| *weight > 0).map(|(cluster, _)| cluster.clone());
            let all = split.chain(Some(outcome.cluster.clone()).filter(|cluster| !cluster.is_empty())).collect();
            End::Backends(all)
        }
    }
}

/// Whether `cluster` is of the Service `name` in `namespace`.
fn leads_to(cluster: &str, name: &str, namespace: &str) -> bool {
    let host = cluster.rsplit('|').next().unwrap_or_default();
    let mut parts = host.split('.');
    let (service, place) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    (name.is_empty() || service == name) && (namespace.is_empty() || place == namespace)
}

/// Nothing if the request ends as it must.
fn judge_request(world: &World, step: &Value, secure: bool) -> Option<String> {
    let outcome = world.outcome(step, secure);
    let found = end(&outcome);
    let statuses: Vec<u64> = list(step, "response.statusCodes").iter().filter_map(Value::as_u64).collect();
    let is_right = match (text(step, "expect"), &found) {
        ("connection-failure", found) => *found == End::None,
        ("not-200", found) => !matches!(found, End::Backends(_)),
        ("failure", found) => !matches!(found, End::Backends(_)),
        // gRPC's own table of statuses: 404 is UNIMPLEMENTED.
        (_, End::Status(404)) if text(step, "response.code") == "Unimplemented" => true,
        (_, End::Status(status)) => statuses.contains(status),
        (_, End::Backends(clusters)) => {
            let is_answered = statuses.is_empty() || statuses.contains(&200) || statuses.contains(&204);
            let named = |cluster: &String| leads_to(cluster, text(step, "backend"), text(step, "namespace"));
            // One of a split may be wanted.
            is_answered && clusters.iter().any(named)
        }
        (_, End::None) => false,
    };
    (!is_right).then(|| format!("{}: {found:?}, {outcome:?}", text(step, "subtest")))
}

fn has_condition(conditions: &[Value], wanted: &Value) -> bool {
    let fits = |condition: &Value, field: &str| {
        text(wanted, field).is_empty() || text(condition, field) == text(wanted, field)
    };
    conditions.iter().any(|condition| {
        text(condition, "type") == text(wanted, "type") && fits(condition, "status") && fits(condition, "reason")
    })
}

fn is_parent(parent: &Value, gateway: &Value, namespace: &str) -> bool {
    let place = text(parent, "parentRef.namespace");
    text(parent, "parentRef.name") == text(gateway, "name")
        && (if place.is_empty() { namespace } else { place }) == text(gateway, "namespace")
}

fn parents_of<'a>(status: &'a Value, route: &Value, gateway: &Value) -> Vec<&'a Value> {
    list(status, "parents").iter().filter(|parent| is_parent(parent, gateway, text(route, "namespace"))).collect()
}

/// Nothing if the status is as it must be; `Err` for what is not judged.
fn judge_status(world: &World, step: &Value) -> Result<Option<String>, ()> {
    let action = text(step, "action").trim_start_matches("kubernetes.");
    let args = &step["args"];
    let accepted = json!({"type": "Accepted", "status": "True", "reason": "Accepted"});
    let kind = action.split("Must").next().unwrap_or_default();
    let is_right = match action {
        "GatewayAndHTTPRoutesMustBeAccepted"
        | "GatewayAndRoutesMustBeAccepted"
        | "GatewayAndTLSRoutesMustBeAccepted"
        | "GatewayAndTCPRoutesMustBeAccepted" => {
            let kind = match action {
                "GatewayAndTLSRoutesMustBeAccepted" => "TLSRoute",
                "GatewayAndTCPRoutesMustBeAccepted" => "TCPRoute",
                "GatewayAndRoutesMustBeAccepted" => text(args, "routeType"),
                _ => "HTTPRoute",
            };
            list(args, "routes").iter().all(|route| {
                let status = world.status(kind, route);
                let parents = parents_of(&status, route, &args["gateway"]);
                parents.iter().any(|parent| has_condition(list(parent, "conditions"), &accepted))
            })
        }
        "HTTPRouteMustHaveResolvedRefsConditionsTrue" | "TLSRouteMustHaveResolvedRefsConditionsTrue" => {
            let wanted = json!({"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs"});
            let status = world.status(kind, &args["route"]);
            let parents = parents_of(&status, &args["route"], &args["gateway"]);
            parents.iter().any(|parent| has_condition(list(parent, "conditions"), &wanted))
        }
        "HTTPRouteMustHaveCondition" | "TLSRouteMustHaveCondition" | "TCPRouteMustHaveCondition" => {
            let status = world.status(kind, &args["route"]);
            let parents = parents_of(&status, &args["route"], &args["gateway"]);
            parents.iter().any(|parent| has_condition(list(parent, "conditions"), &args["condition"]))
        }
        "HTTPRouteMustHaveNoAcceptedParents" | "TLSRouteMustHaveNoAcceptedParents" => {
            let status = world.status(kind, &args["route"]);
            list(&status, "parents").iter().all(|parent| !has_condition(list(parent, "conditions"), &accepted))
        }
        "HTTPRouteMustHaveParents" => {
            let status = world.status(kind, &args["route"]);
            list(args, "parents").iter().all(|wanted| {
                let parents = parents_of(&status, &args["route"], &wanted["parentRef"]);
                parents.iter().any(|parent| {
                    list(wanted, "conditions")
                        .iter()
                        .all(|condition| has_condition(list(parent, "conditions"), condition))
                })
            })
        }
        "GatewayMustHaveCondition" => {
            let wanted = args.get("expectedCondition").unwrap_or(&args["condition"]);
            has_condition(list(&world.status("Gateway", &args["gateway"]), "conditions"), wanted)
        }
        "GatewayMustHaveZeroRoutes" => {
            let status = world.status("Gateway", &args["gateway"]);
            list(&status, "listeners").iter().all(|listener| listener["attachedRoutes"].as_u64().unwrap_or(0) == 0)
        }
        "GatewayStatusMustHaveListeners" => {
            let status = world.status("Gateway", &args["gateway"]);
            let found = list(&status, "listeners");
            let wanted = list(args, "listeners");
            found.len() == wanted.len()
                && wanted.iter().all(|wanted| {
                    found.iter().any(|listener| {
                        let kinds = |value: &Value| -> BTreeSet<String> {
                            list(value, "supportedKinds").iter().map(|kind| text(kind, "kind").to_owned()).collect()
                        };
                        let supported = kinds(listener);
                        text(listener, "name") == text(wanted, "name")
                            && listener["attachedRoutes"].as_u64().unwrap_or(0)
                                == wanted["attachedRoutes"].as_u64().unwrap_or(0)
                            && kinds(wanted).is_subset(&supported)
                            && (!kinds(wanted).is_empty() || supported.is_empty())
                            && list(wanted, "conditions")
                                .iter()
                                .all(|condition| has_condition(list(listener, "conditions"), condition))
                    })
                })
        }
        "BackendTLSPolicyMustHaveCondition" | "BackendTLSPolicyMustHaveAcceptedConditionTrue" => {
            let status = world.status("BackendTLSPolicy", &args["policy"]);
            let wanted = args.get("condition").unwrap_or(&accepted);
            list(&status, "ancestors").iter().any(|ancestor| has_condition(list(ancestor, "conditions"), wanted))
        }
        _ => return Err(()),
    };
    Ok((!is_right).then(|| format!("{} {action} {args}", text(step, "subtest"))))
}

#[test]
fn conformance() {
    let Some(folder) = corpus() else {
        eprintln!("skipped: no corpus at ../shared/corpus, and TORUS_CORPUS is not set");
        return;
    };
    let json = |path: PathBuf| -> Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let mut base = manifests(&folder, "base/manifests.yaml");
    base.extend(to_objects(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "istio"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
    })));
    base.extend(certificates(&json(folder.join("fixtures.json"))));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder.join("expect")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut tests, mut steps, mut unjudged, mut accepted) = (0, 0, 0, 0);
    let mut wrong: Vec<String> = Vec::new();
    for file in &files {
        let case = json(file.clone());
        let name = text(&case, "shortName");
        let features: Vec<&str> = list(&case, "features").iter().filter_map(Value::as_str).collect();
        let by_feature = UNSERVED.iter().find(|(feature, _)| features.contains(feature));
        if let Some((feature, reason)) = by_feature.or(DIFFERENT.iter().find(|(test, _)| *test == name)) {
            println!("accepted: {name}: {feature}: {reason}");
            accepted += 1;
            continue;
        }
        let mut objects = base.clone();
        for manifest in list(&case, "manifests").iter().filter_map(Value::as_str) {
            for object in manifests(&folder, manifest) {
                objects.retain(|known| known.resource != object.resource);
                objects.push(object);
            }
        }
        let gateways: Vec<Object> = objects
            .iter()
            .filter(|object| object.resource.group == "gateway.networking.k8s.io" && object.resource.kind == "Gateway")
            .cloned()
            .collect();
        objects.extend(gateways.iter().enumerate().flat_map(|(index, gateway)| service_of(gateway, &address(index))));
        let gateways = gateways.iter().map(|gateway| gateway.resource.to_string()).collect();
        let (mesh, _) = Mesh::build(&objects, &MeshOptions::default());
        let world = World { mesh, objects, gateways };
        let reason = NOT_JUDGED.iter().find(|(test, _)| *test == name).map(|(_, reason)| *reason);
        let before = wrong.len();
        for step in list(&case, "steps") {
            let found = match text(step, "action") {
                "apply" | "delete" | "patch" => break,
                "http-request" | "grpc-request" if reason.is_none() => judge_request(&world, step, false),
                "https-request" if reason.is_none() => judge_request(&world, step, true),
                _ => match judge_status(&world, step) {
                    Ok(found) => found,
                    Err(()) => {
                        unjudged += 1;
                        continue;
                    }
                },
            };
            steps += 1;
            wrong.extend(found.map(|found| format!("{name}: {found}")));
        }
        tests += usize::from(wrong.len() == before);
        if let Some(reason) = reason {
            println!("requests not judged: {name}: {reason}");
        }
    }
    println!(
        "gateway-api-conformance: {tests} of {} tests, {accepted} not served; {} of {steps} steps right, {unjudged} not judged",
        files.len(),
        steps - wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
