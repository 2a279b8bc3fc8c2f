//! One JSON document with a version.

use serde::Serialize;

use crate::facts::{Choices, Facts};
use crate::plan::{Finding, Row, Tally};

/// Version of the document; it changes when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    program: &'static str,
    profile: &'static str,
    machine: MachineRow<'a>,
    tally: Tally,
    findings: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct MachineRow<'a> {
    kernel: &'a str,
    boot_id: &'a str,
    cpus: String,
    data_cpus: String,
    irq_cpus: String,
    memory_bytes: u64,
    container: bool,
    host_network_namespace: bool,
    interfaces: Vec<NicRow<'a>>,
}

#[derive(Serialize)]
struct NicRow<'a> {
    name: &'a str,
    driver: Option<&'a str>,
    receive_queues: usize,
    transmit_queues: usize,
    interrupts: usize,
}

/// The findings as one document.
pub fn render(findings: &[Finding], facts: &Facts, choices: &Choices) -> String {
    let interfaces = facts.nics.iter().map(|nic| NicRow {
        name: &nic.name,
        driver: nic.driver.as_deref(),
        receive_queues: nic.rx.len(),
        transmit_queues: nic.tx.len(),
        interrupts: nic.irqs.len(),
    });
    let document = Document {
        schema: SCHEMA,
        program: concat!("torus-tune ", env!("CARGO_PKG_VERSION")),
        profile: choices.profile.name(),
        machine: MachineRow {
            kernel: &facts.kernel,
            boot_id: &facts.boot_id,
            cpus: facts.cpus.to_list(),
            data_cpus: facts.data_cpus.to_list(),
            irq_cpus: facts.irq_cpus.to_list(),
            memory_bytes: facts.memory_bytes,
            container: facts.container,
            host_network_namespace: facts.host_netns,
            interfaces: interfaces.collect(),
        },
        tally: Tally::of(findings),
        findings: findings.iter().map(Finding::row).collect(),
    };
    // Strings, numbers and lists of them cannot fail to become JSON.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}
