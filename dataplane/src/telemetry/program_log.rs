//! The program's own log: Envoy's line format, a level for each component, changed while the program runs.
//!
//! A component is the `target` of an event, for instance `tracing::info!(target: "admin", ..)`; events without one belong to the
//! module they are in (`torus_proxy::admin::server` is `admin`). Source: Envoy, `--log-level`, `--component-log-level`,
//! `--log-format`, `--log-path`, and `POST /logging`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::reload;

use self::line::{LineFormat, Record};
use crate::config::flags;

pub(crate) use self::line::civil_date;

mod line;

/// What the command line says of the log.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// `--log-level`
    pub level: Level,
    /// `--component-log-level`; components that this program does not have are left alone.
    pub component_levels: Vec<(String, Level)>,
    /// `--log-format`; Envoy's where it is not given.
    pub format: Option<String>,
    /// `--log-path`; standard error where it is not given.
    pub path: Option<PathBuf>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Trace,
    /// What a developer wants.
    Debug,
    /// What an operator wants.
    #[default]
    Info,
    /// What an operator should look at.
    Warning,
    /// What went wrong.
    Error,
    /// What ends the program.
    Critical,
    /// Nothing.
    Off,
}

impl From<flags::LogLevel> for Level {
    fn from(level: flags::LogLevel) -> Self {
        match level {
            flags::LogLevel::Trace => Self::Trace,
            flags::LogLevel::Debug => Self::Debug,
            flags::LogLevel::Info => Self::Info,
            flags::LogLevel::Warning => Self::Warning,
            flags::LogLevel::Error => Self::Error,
            flags::LogLevel::Critical => Self::Critical,
            flags::LogLevel::Off => Self::Off,
        }
    }
}

impl From<&flags::Options> for LogOptions {
    fn from(options: &flags::Options) -> Self {
        let components = options.component_log_levels.iter();
        Self {
            level: options.log_level.into(),
            component_levels: components.map(|(name, level)| (name.clone(), (*level).into())).collect(),
            format: options.log_format.clone(),
            path: options.log_path.clone().map(PathBuf::from),
        }
    }
}

impl Level {
    /// Every level, most talkative first.
    pub const ALL: [Self; 7] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];

    /// Envoy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    /// The level called `name`; `warn` is `warning`.
    pub fn named(name: &str) -> Option<Self> {
        let name = if name == "warn" { "warning" } else { name };
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error | Self::Critical => LevelFilter::ERROR,
            Self::Off => LevelFilter::OFF,
        }
    }
}

/// Why the log cannot be set up or changed.
#[derive(Debug, Error)]
pub enum LogError {
    /// No such level.
    #[error("unknown logger level")]
    UnknownLevel,
    /// No such component.
    #[error("unknown logger name")]
    UnknownLogger,
    /// A component without a level.
    #[error("`{0}` must be a component and its level, for instance `http:debug`")]
    NotAPair(String),
    /// The file cannot be written.
    #[error("cannot open log file `{}`: {source}; name a file that can be written with --log-path", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another log is there already.
    #[error("the log is set up already")]
    Installed,
}

/// Changes levels while the program runs.
#[derive(Clone)]
pub struct LogControl {
    levels: Arc<Mutex<BTreeMap<&'static str, Level>>>,
    apply: Arc<dyn Fn(Targets) + Send + Sync>,
}

impl LogControl {
    /// Each component and its level, by name.
    pub fn levels(&self) -> Vec<(&'static str, Level)> {
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.iter().map(|(name, level)| (*name, *level)).collect()
    }

    /// Sets every component's level.
    pub fn set_all(&self, level: Level) {
        self.change(|levels| levels.values_mut().for_each(|known| *known = level));
    }

    /// Sets the levels of some components; changes nothing where one is unknown.
    pub fn set(&self, changes: &[(&str, &str)]) -> Result<(), LogError> {
        let changes = changes.iter().map(|(name, level)| {
            let name = LOGGERS.iter().find(|known| *known == name).ok_or(LogError::UnknownLogger)?;
            Ok((*name, Level::named(level).ok_or(LogError::UnknownLevel)?))
        });
        let changes: Vec<_> = changes.collect::<Result<_, LogError>>()?;
        self.change(|levels| levels.extend(changes));
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, Level>)) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut levels);
        (self.apply)(targets(&levels));
    }
}

/// `http:debug,router:trace` as pairs.
pub fn pairs(text: &str) -> Result<Vec<(&str, &str)>, LogError> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.split_once(':').ok_or_else(|| LogError::NotAPair(item.to_owned()))).collect()
}

/// Makes this the log of the whole process.
pub fn install(options: &LogOptions) -> Result<LogControl, LogError> {
    let (subscriber, control) = subscriber(options)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)?;
    Ok(control)
}

fn subscriber(options: &LogOptions) -> Result<(impl Subscriber + Send + Sync + use<>, LogControl), LogError> {
    let output = match &options.path {
        None => Output::Stderr,
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            Output::File(file.map_err(|source| LogError::Open { path: path.clone(), source })?)
        }
    };
    let format = LineFormat::parse(options.format.as_deref().unwrap_or(DEFAULT_FORMAT));
    let levels = initial_levels(options);
    let (filter, handle) = reload::Layer::new(targets(&levels));
    let control = LogControl {
        levels: Arc::new(Mutex::new(levels)),
        apply: Arc::new(move |targets| {
            // Fails only once the log itself is gone.
            let _ = handle.reload(targets);
        }),
    };
    let lines = Lines { format, output: Mutex::new(output) };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    Ok((subscriber, control))
}

fn initial_levels(options: &LogOptions) -> BTreeMap<&'static str, Level> {
    let own = |name: &str| options.component_levels.iter().rev().find(|(known, _)| known == name);
    LOGGERS.iter().map(|name| (*name, own(name).map_or(options.level, |(_, level)| *level))).collect()
}

fn targets(levels: &BTreeMap<&'static str, Level>) -> Targets {
    let misc = levels.get("misc").copied().unwrap_or_default();
    let mut targets = Targets::new().with_default(misc.filter());
    for (name, level) in levels {
        targets = targets.with_target(*name, level.filter());
        targets = targets.with_target(format!("torus_proxy::{name}"), level.filter());
    }
    targets
}

/// Writes events as lines.
struct Lines {
    format: LineFormat,
    output: Mutex<Output>,
}

enum Output {
    Stderr,
    File(File),
    #[cfg(test)]
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let record = Record {
            time: SystemTime::now(),
            level: level_of(metadata),
            logger: logger_of(metadata.target()),
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            message: &message.text,
        };
        let mut line = self.format.line(&record);
        line.push('\n');
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to tell of a log that cannot be written.
        let _ = match &mut *output {
            Output::Stderr => io::stderr().lock().write_all(line.as_bytes()),
            Output::File(file) => file.write_all(line.as_bytes()),
            #[cfg(test)]
            Output::Memory(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line.as_bytes());
                Ok(())
            }
        };
    }
}

/// The text of an event: its message, then its other fields.
#[derive(Default)]
struct Message {
    text: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::TRACE => Level::Trace,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::INFO => Level::Info,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::ERROR => Level::Error,
    }
}

fn logger_of(target: &str) -> &str {
    match target.strip_prefix("torus_proxy::") {
        Some(module) => module.split("::").next().unwrap_or(module),
        None => target,
    }
}

/// Envoy's format where none is given. Source: Envoy, `--log-format`.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// Components: those that this program has, and those of Envoy that tools set levels for.
const LOGGERS: &[&str] = &[
    "admin",
    "assert",
    "client",
    "cluster",
    "config",
    "conn_handler",
    "connection",
    "dns",
    "downstream",
    "exchange",
    "file",
    "filter",
    "forward_proxy",
    "grpc",
    "hc",
    "health_checker",
    "http",
    "http2",
    "init",
    "io",
    "jwt",
    "key_value_store",
    "listener",
    "lua",
    "main",
    "misc",
    "oauth2",
    "original_dst",
    "pool",
    "quic",
    "rbac",
    "redis",
    "ring",
    "route",
    "router",
    "runtime",
    "secret",
    "stats",
    "tap",
    "tcp_proxy",
    "telemetry",
    "testing",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "worker",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(options: &LogOptions, run: impl FnOnce(&LogControl)) -> String {
        let memory = Arc::new(Mutex::new(Vec::new()));
        let levels = initial_levels(options);
        let (filter, handle) = reload::Layer::new(targets(&levels));
        let control = LogControl {
            levels: Arc::new(Mutex::new(levels)),
            apply: Arc::new(move |targets| handle.reload(targets).unwrap()),
        };
        let lines = Lines { format: LineFormat::parse("%l %n %v"), output: Mutex::new(Output::Memory(memory.clone())) };
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        tracing::subscriber::with_default(subscriber, || run(&control));
        let text = memory.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn levels_change_while_the_program_runs() {
        let text = captured(&LogOptions::default(), |control| {
            tracing::debug!(target: "http", "not yet");
            control.set(&[("http", "debug")]).unwrap();
            tracing::debug!(target: "http", count = 3, "now");
            tracing::debug!(target: "router", "not this one");
            control.set_all(Level::Off);
            tracing::error!(target: "http", "too late");
            assert!(matches!(control.set(&[("http", "debug"), ("nope", "debug")]), Err(LogError::UnknownLogger)));
            assert!(matches!(control.set(&[("http", "loud")]), Err(LogError::UnknownLevel)));
            tracing::error!(target: "http", "nothing changed");
            control.set_all(Level::Warning);
            assert!(control.levels().iter().all(|(_, level)| *level == Level::Warning));
        });
        assert_eq!(text, "debug http now count=3\n");
    }

    #[test]
    fn components_begin_with_their_own_level() {
        let component_levels = vec![("http".to_owned(), Level::Debug), ("a2a".to_owned(), Level::Trace)];
        let options = LogOptions { level: Level::Error, component_levels, ..LogOptions::default() };
        let text = captured(&options, |_| {
            tracing::debug!(target: "http", "shown");
            tracing::warn!(target: "main", "hidden");
        });
        assert_eq!(text, "debug http shown\n");
    }

    #[test]
    fn modules_are_components() {
        assert_eq!(logger_of("torus_proxy::admin::server"), "admin");
        assert_eq!(logger_of("main"), "main");
        let text = captured(&LogOptions::default(), |control| {
            control.set(&[("telemetry", "debug")]).unwrap();
            tracing::debug!("of this module");
        });
        assert_eq!(text, "debug telemetry of this module\n");
    }

    #[test]
    fn component_levels_are_pairs() {
        assert_eq!(pairs("http:debug, router:trace,").unwrap(), [("http", "debug"), ("router", "trace")]);
        assert_eq!(pairs("").unwrap(), []);
        assert!(matches!(pairs("http"), Err(LogError::NotAPair(_))));
    }
}
