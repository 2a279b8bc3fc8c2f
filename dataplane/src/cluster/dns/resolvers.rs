//! Asking name servers, `/etc/hosts` and, for literals, nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{TokioResolver, system_conf};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::{LookupFamily, ResolverPlan};

/// Questions under way at once, of all clusters together; further ones wait.
const QUESTION_COUNT_MAX: usize = 128;

/// The files that say whom to ask; a change makes new resolvers.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// What a name resolved to. No address means that the name servers know of none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In the order received, each once.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live; `None` where nothing says.
    pub ttl: Option<Duration>,
}

/// Why a name has no answer.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The resolver could not be made.
    #[error("cannot make a resolver: {0}")]
    Resolver(NetError),
    /// The question failed: no answer in time, no server, a server's failure.
    #[error("{0}")]
    Question(NetError),
}

/// Resolvers for all clusters, one for each way to ask; used by the config thread only.
pub struct Resolvers {
    by_plan: Mutex<HashMap<ResolverPlan, Made>>,
    questions: Semaphore,
}

struct Made {
    resolver: TokioResolver,
    changed: [Option<SystemTime>; SYSTEM_FILES.len()],
}

impl Default for Resolvers {
    fn default() -> Self {
        Self { by_plan: Mutex::default(), questions: Semaphore::new(QUESTION_COUNT_MAX) }
    }
}

impl Resolvers {
    /// The addresses of `name`.
    pub async fn resolve(&self, plan: &ResolverPlan, family: LookupFamily, name: &str) -> Result<Answer, ResolveError> {
        if let Ok(literal) = name.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![literal], ttl: None });
        }
        let resolver = self.resolver(plan)?;
        // The semaphore is never closed.
        let _turn = self.questions.acquire().await;
        let ask = async |kind| ask(&resolver, name, kind).await;
        match family {
            LookupFamily::V4Only => ask(RecordType::A).await,
            LookupFamily::V6Only => ask(RecordType::AAAA).await,
            LookupFamily::Auto => first_found(ask(RecordType::AAAA).await, async || ask(RecordType::A).await).await,
            LookupFamily::V4Preferred => {
                first_found(ask(RecordType::A).await, async || ask(RecordType::AAAA).await).await
            }
            LookupFamily::All => {
                let (v6, v4) = tokio::join!(ask(RecordType::AAAA), ask(RecordType::A));
                match (v6, v4) {
                    (Ok(v6), Ok(v4)) => Ok(v6.and(v4)),
                    (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.addresses.is_empty() => Ok(found),
                    (Err(error), _) | (_, Err(error)) => Err(error),
                }
            }
        }
    }

    /// The resolver of `plan`, made anew when the system's files have changed.
    fn resolver(&self, plan: &ResolverPlan) -> Result<TokioResolver, ResolveError> {
        let changed = SYSTEM_FILES.map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok());
        // Nothing panics while it holds the map.
        let mut by_plan = self.by_plan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = by_plan.get(plan)
            && made.changed == changed
        {
            return Ok(made.resolver.clone());
        }
        let resolver = make(plan)?;
        by_plan.insert(plan.clone(), Made { resolver: resolver.clone(), changed });
        Ok(resolver)
    }
}

impl Answer {
    fn and(mut self, other: Self) -> Self {
        self.addresses.extend(other.addresses);
        self.ttl = match (self.ttl, other.ttl) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self
    }
}

/// The first answer, or the second where the first has no address.
async fn first_found(
    first: Result<Answer, ResolveError>,
    second: impl AsyncFnOnce() -> Result<Answer, ResolveError>,
) -> Result<Answer, ResolveError> {
    match first {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        _ => second().await,
    }
}

async fn ask(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Answer, ResolveError> {
    let lookup = match resolver.lookup(name, kind).await {
        Ok(lookup) => lookup,
        // The name, or the kind of record, is known not to be there.
        Err(error) if error.is_no_records_found() => return Ok(Answer::default()),
        Err(error) => return Err(ResolveError::Question(error)),
    };
    let mut answer = Answer::default();
    for record in lookup.answers() {
        let address = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            _ => continue,
        };
        if !answer.addresses.contains(&address) {
            answer.addresses.push(address);
        }
        let ttl = Duration::from_secs(record.ttl.into());
        answer.ttl = Some(answer.ttl.map_or(ttl, |shortest| shortest.min(ttl)));
    }
    Ok(answer)
}

fn make(plan: &ResolverPlan) -> Result<TokioResolver, ResolveError> {
    // Without a readable /etc/resolv.conf there is still /etc/hosts.
    let (system, mut options) =
        system_conf::read_system_conf().unwrap_or((ResolverConfig::default(), ResolverOpts::default()));
    let (domain, search, mut servers) = system.into_parts();
    if !plan.servers.is_empty() {
        servers = plan.servers.iter().map(|server| name_server(server.ip(), server.port())).collect();
    }
    if plan.tcp_only {
        for server in &mut servers {
            server.connections.retain(|connection| connection.protocol.to_protocol().is_stream());
        }
    }
    let (domain, search) = if plan.no_search_domains { (None, Vec::new()) } else { (domain, search) };
    // Each cluster asks when its own time comes.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Always;
    options.preserve_intermediates = false;
    options.max_active_requests = QUESTION_COUNT_MAX;
    if let Some(timeout) = plan.query_timeout {
        options.timeout = timeout;
    }
    if let Some(tries) = plan.query_tries {
        options.attempts = tries as usize;
    }
    let config = ResolverConfig::from_parts(domain, search, servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(ResolveError::Resolver)
}

fn name_server(ip: IpAddr, port: u16) -> NameServerConfig {
    // Port 0 stands for the default, as in c-ares.
    let port = if port == 0 { 53 } else { port };
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = port);
    NameServerConfig::new(ip, true, connections)
}
