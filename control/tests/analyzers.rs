//! Istio's own analyzer cases: the messages that each must give, by code, level and object.
//!
//! The corpus is read at `../shared/corpus` beside the repository or at `$TORUS_CORPUS`; without it the test says so and passes.

use std::path::PathBuf;

use serde_json::Value;
use torus_control::analyze::analyze;
use torus_control::model::{Finding, Mesh, MeshOptions, Severity};
use torus_control::source::{Object, read};

/// What this program has no part in, by analyzer.
const ACCEPTED: &[(&str, &str)] = &[
    ("annotations.K8sAnalyzer", "annotations are judged by what reads them; most are of Istio's injection"),
    ("maturity.AlphaAnalyzer", "annotations are judged by what reads them; most are of Istio's injection"),
    ("externalcontrolplane.ExternalControlPlaneAnalyzer", "webhooks of an installed istiod"),
    ("webhook.Analyzer", "webhooks of an installed istiod"),
    ("authn.BlockedCIDRsAnalyzer", "the environment of an installed istiod"),
    ("multicluster.MeshNetworksAnalyzer", "one source of objects; several clusters are not served"),
    ("multicluster.ServiceAnalyzer", "one source of objects; several clusters are not served"),
];

/// Codes that the analyzer of a case gives. `IST0101` is given by several: there the kind of the object tells whose it is.
fn codes(analyzer: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match analyzer {
        "deprecation.FieldAnalyzer" => (&["IST0002"], &[]),
        "gateway.IngressGatewayPortAnalyzer" => (&["IST0162"], &["Gateway"]),
        "gateway.ConflictingGatewayAnalyzer" => (&["IST0145"], &[]),
        "service.PortNameAnalyzer" => (&["IST0118", "IST0150"], &[]),
        "sidecar.SelectorAnalyzer" => (&["IST0110", "IST0111"], &["Sidecar"]),
        "virtualservice.ConflictingMeshGatewayHostsAnalyzer" => (&["IST0109"], &[]),
        "virtualservice.GatewayAnalyzer" => (&["IST0132", "IST0165"], &["VirtualService"]),
        "virtualservice.JWTClaimRouteAnalyzer" => (&["IST0149"], &[]),
        "deployment.ServiceAssociationAnalyzer" => (&["IST0116", "IST0137"], &[]),
        "deployment.ApplicationUIDAnalyzer" => (&["IST0144"], &[]),
        "authz.AuthorizationPoliciesAnalyzer" => (&["IST0127"], &["AuthorizationPolicy"]),
        "destinationrule.CaCertificateAnalyzer" => (&["IST0128", "IST0129"], &[]),
        "destinationrule.PodNotSelectedAnalyzer" => (&["IST0173", "IST0174"], &[]),
        "envoyfilter.EnvoyPatchAnalyzer" => (&["IST0151", "IST0152", "IST0153", "IST0154", "IST0155"], &[]),
        "telemetry.ProviderAnalyzer" => (&["IST0157"], &[]),
        "k8sgateway.SelectorAnalyzer" => (&["IST0166"], &[]),
        "serviceentry.ConflictingServiceEntryProtocolAnalyzer" => (&["IST0177"], &[]),
        "serviceentry.ProtocolAddressesAnalyzer" => (&["IST0134"], &[]),
        "injection.ImageAnalyzer" => (&["IST0158"], &[]),
        // The case of unreachable matches names no analyzer.
        "" => (&["IST0130", "IST0131"], &[]),
        _ => (&[], &[]),
    }
}

fn shown(finding: &Finding) -> String {
    let level = match finding.severity {
        Severity::Error => "Error",
        Severity::Warning => "Warning",
        Severity::Info => "Info",
    };
    let resource = finding.resource.to_string().replace(" default/", " ");
    format!("{} {level} {resource}", finding.code)
}

#[test]
fn istios_cases() {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let folder = std::env::var_os("TORUS_CORPUS").map_or_else(beside, PathBuf::from).join("istio-analyzers");
    let Ok(expected) = std::fs::read_to_string(folder.join("expected.json")) else {
        eprintln!("skipped: no corpus at {}", folder.display());
        return;
    };
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let (mut right, mut accepted, mut wrong) = (0, 0, Vec::new());
    let cases = expected["cases"].as_array().unwrap();
    for case in cases {
        let text = |field: &str| case[field].as_str().unwrap_or_default();
        let (name, analyzer) = (text("name"), text("analyzer"));
        if let Some((_, reason)) = ACCEPTED.iter().find(|(known, _)| *known == analyzer) {
            println!("accepted: {name}: {reason}");
            accepted += 1;
            continue;
        }
        let mut objects: Vec<Object> = Vec::new();
        for file in case["inputFiles"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            objects.extend(read(file, &text).unwrap_or_else(|findings| panic!("{file}: {findings:?}")));
        }
        let mut options = MeshOptions::default();
        if let Some(file) = case["meshConfigFile"].as_str() {
            options.read_mesh_config(&folder.join(file)).unwrap();
        }
        let (of_analyzer, of_kinds) = codes(analyzer);
        let mut findings = analyze(&objects, &options, &options.mesh_config);
        findings.extend(Mesh::build(&objects, &options).1);
        let mut found: Vec<String> = findings
            .iter()
            .filter(|finding| {
                of_analyzer.contains(&finding.code)
                    || finding.code == "IST0101"
                        && of_kinds.contains(&finding.resource.kind.as_str())
                        && !finding.message.starts_with("there is no service")
            })
            .map(shown)
            .collect();
        let mut wanted: Vec<String> = case["expected"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|message| {
                let field = |name: &str| message[name].as_str().unwrap_or_default();
                format!("{} {} {}", field("code"), field("level"), field("resource").replace(" default/", " "))
            })
            .collect();
        found.sort();
        wanted.sort();
        if found == wanted {
            right += 1;
        } else {
            wrong.push(format!("{name} ({analyzer}):\n  expected {wanted:#?}\n  found {found:#?}"));
        }
    }
    println!("istio-analyzers: {right} of {} cases, {accepted} accepted differences", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
