//! torus-proxy against real Envoy: same bootstrap, same requests, everything observable compared.
//!
//! `TORUS_DIFFERENTIAL_ONLY=name,...` runs some themes, `TORUS_DIFFERENTIAL_SELF=1` compares Envoy with itself,
//! `TORUS_DIFFERENTIAL_REPORT=file` writes every unexplained difference as JSON, `TORUS_DIFFERENTIAL_KEEP=folder` keeps
//! the bootstraps, `TORUS_DIFFERENTIAL_SLOW=1` names requests that take longer than half a second.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use torus_tests::binaries;
use torus_tests::differential::{self, Difference, Row, Theme, Verdict};

/// Themes that run at once; more would disturb each other's timeouts.
const THREADS: usize = 3;
/// Differences printed for one theme; the report file has all.
const SHOWN_MAX: usize = 40;
/// The suite promises at least this many requests.
const REQUESTS_MIN: usize = 400;

#[test]
fn torus_proxy_behaves_as_envoy() {
    let Some(envoy) = binaries::envoy() else {
        assert!(std::env::var_os("CI").is_none(), "Envoy is missing; try: scripts/install-test-tools.sh");
        println!("skipped: Envoy is missing; try: scripts/install-test-tools.sh");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential");
    let with_itself = std::env::var_os("TORUS_DIFFERENTIAL_SELF").is_some();
    let rows = if with_itself { Vec::new() } else { differential::rows(&folder.join("differences.yaml")) };
    let ours = if with_itself { envoy.clone() } else { binaries::torus_proxy() };
    let only = std::env::var("TORUS_DIFFERENTIAL_ONLY").ok();
    let mut themes = differential::themes(&folder.join("themes"));
    if let Some(only) = &only {
        themes.retain(|theme| only.split(',').any(|name| name == theme.name));
    }
    let total = run_all(&themes, &[envoy, ours], &rows);
    let requests: usize = themes.iter().map(|theme| theme.requests.len()).sum();
    println!(
        "differential: {} themes, {requests} requests, {} fields compared: {} differences explained, {} unexplained",
        themes.len(),
        total.compared,
        total.explained.len(),
        total.unexplained.len()
    );
    report(&total.unexplained);
    assert!(total.unexplained.is_empty(), "{} unexplained differences", total.unexplained.len());
    if only.is_none() {
        assert!(requests >= REQUESTS_MIN, "{requests} requests are fewer than {REQUESTS_MIN}");
        let unused = rows.iter().zip(&total.used).filter(|(row, used)| **used == 0 && !row.timing);
        let unused: Vec<_> = unused.map(|(row, _)| format!("{} {}", row.case, row.field)).collect();
        assert!(unused.is_empty(), "rows of differences.yaml that explain nothing any more: {unused:#?}");
    }
}

/// Runs every theme, a few at once, those that must be alone last.
fn run_all(themes: &[Theme], binaries: &[std::path::PathBuf], rows: &[Row]) -> Verdict {
    let (alone, together): (Vec<&Theme>, Vec<&Theme>) = themes.iter().partition(|theme| theme.alone);
    let total = Mutex::new(Verdict { used: vec![0; rows.len()], ..Verdict::default() });
    let one = |theme: &Theme| {
        let started = std::time::Instant::now();
        let mut runs = differential::run(theme, binaries).into_iter();
        let envoy = runs.next().expect("Envoy ran").unwrap_or_else(|error| panic!("{error}"));
        let verdict = match runs.next().expect("torus-proxy ran") {
            Ok(ours) => differential::judge(&theme.name, &envoy, &ours, rows),
            Err(error) => Verdict::not_started(&theme.name, error),
        };
        println!(
            "{:28} {:3} requests {:5} fields {:3} explained {:3} unexplained {:5.1} s",
            theme.name,
            theme.requests.len(),
            verdict.compared,
            verdict.explained.len(),
            verdict.unexplained.len(),
            started.elapsed().as_secs_f64()
        );
        verdict.unexplained.iter().take(SHOWN_MAX).for_each(|difference| println!("{difference}"));
        let mut total = total.lock().expect("no theme panicked");
        total.compared += verdict.compared;
        total.explained.extend(verdict.explained);
        total.unexplained.extend(verdict.unexplained);
        total.used.iter_mut().zip(verdict.used).for_each(|(sum, more)| *sum += more);
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(together.len()) {
            scope.spawn(|| {
                while let Some(theme) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                    one(theme);
                }
            });
        }
    });
    alone.into_iter().for_each(one);
    total.into_inner().expect("no theme panicked")
}

fn report(unexplained: &[Difference]) {
    if let Some(path) = std::env::var_os("TORUS_DIFFERENTIAL_REPORT") {
        let text = serde_json::to_string_pretty(unexplained).expect("differences print");
        std::fs::write(path, text).expect("the report can be written");
    }
}
