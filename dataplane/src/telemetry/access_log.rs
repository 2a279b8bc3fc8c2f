//! Access logs: a compiled format, a filter, and the sink that lines go to.
//!
//! A worker formats lines into a buffer of its own for each sink. A buffer that is full or old goes through a bounded lock-free queue
//! to one writer thread and comes back empty. A worker never waits: where the writer is behind and the queue is full, the buffer's
//! lines are dropped and counted (`torus.access_log.lines_dropped`).

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3 as proto;
use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use torus_ring::Nanos;

use self::sink::{Filled, LogSinks, Sink};
use super::counters::{Core, Stats};
use super::format::{Format, FormatContext};
use super::log_filter::LogFilter;
use super::names::{FilesystemStat, TorusStat};
use crate::config::parse::ParseContext;
use crate::config::parse::context::type_name;
use crate::config::reject::Refused;
use crate::route::Scratch;

pub mod sink;

/// One configured access log. Source: envoy.config.accesslog.v3.AccessLog.
pub struct AccessLog {
    filter: Option<LogFilter>,
    format: Format,
    sink: Arc<Sink>,
}

impl AccessLog {
    /// Compiles `config` and opens its file.
    pub fn parse(config: &proto::AccessLog, context: &mut ParseContext) -> Result<Self, Refused> {
        let filter = match &config.filter {
            Some(filter) => context.within("filter", |context| LogFilter::parse(filter, context).map(Some)),
            None => Ok(None),
        };
        let Some(ConfigType::TypedConfig(packed)) = &config.config_type else {
            return Err(context.reject("typed_config", "is required"));
        };
        let logger = context.within("typed_config", |context| match type_name(&packed.type_url) {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let config = context.unpack::<file::FileAccessLog>("", packed)?;
                let format = file_format(&config, context);
                let path = context.non_empty("path", &config.path)?;
                let sink =
                    context.log_sinks.clone().open(path).map_err(|error| context.reject("path", error.to_string()));
                Ok((format?, sink?))
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                use stream::stdout_access_log::AccessLogFormat::LogFormat;
                let config = context.unpack::<stream::StdoutAccessLog>("", packed)?;
                let format = config.access_log_format.map(|LogFormat(format)| format);
                Ok((log_format(format.as_ref(), context)?, context.log_sinks.clone().stdout()))
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                use stream::stderr_access_log::AccessLogFormat::LogFormat;
                let config = context.unpack::<stream::StderrAccessLog>("", packed)?;
                let format = config.access_log_format.map(|LogFormat(format)| format);
                Ok((log_format(format.as_ref(), context)?, context.log_sinks.clone().stderr()))
            }
            other => Err(context.reject("@type", format!("access logger `{other}` is not there yet in this version"))),
        });
        let (format, sink) = logger?;
        Ok(Self { filter: filter?, format, sink })
    }

    /// Adds a line for this request if the filter takes it; `random` decides `runtime_filter`.
    ///
    /// Allocates nothing once the worker's buffers have grown.
    pub fn log(&self, buffers: &mut LogBuffers, context: &FormatContext<'_>, random: u64) {
        if self.filter.as_ref().is_none_or(|filter| filter.takes(context, random, &mut buffers.scratch)) {
            buffers.append(&self.sink, |line| self.format.write(context, line));
        }
    }
}

fn file_format(config: &file::FileAccessLog, context: &mut ParseContext) -> Result<Format, Refused> {
    use file::file_access_log::AccessLogFormat;
    match &config.access_log_format {
        #[allow(deprecated)]
        Some(AccessLogFormat::Format(text)) if !text.is_empty() => Format::parse_text("format", text, false, context),
        Some(AccessLogFormat::LogFormat(format)) => log_format(Some(format), context),
        #[allow(deprecated)]
        Some(AccessLogFormat::JsonFormat(fields)) => deprecated_json("json_format", fields, context),
        #[allow(deprecated)]
        Some(AccessLogFormat::TypedJsonFormat(fields)) => deprecated_json("typed_json_format", fields, context),
        _ => log_format(None, context),
    }
}

fn log_format(config: Option<&core::SubstitutionFormatString>, context: &mut ParseContext) -> Result<Format, Refused> {
    match config {
        Some(config) => context.within("log_format", |context| Format::parse(config, context)),
        None => Format::parse_text("", Format::ENVOY_DEFAULT, false, context),
    }
}

fn deprecated_json(
    field: &str,
    fields: &envoy_types::pb::google::protobuf::Struct,
    context: &mut ParseContext,
) -> Result<Format, Refused> {
    let kind = core::substitution_format_string::Format::JsonFormat(fields.clone());
    let config = core::SubstitutionFormatString { format: Some(kind), ..Default::default() };
    context.within(field, |context| Format::parse(&config, context))
}

/// One worker's buffers, by sink.
///
/// The worker calls [`Self::flush_aged`] or, every [`LogSinks::flush_interval`], [`Self::flush`]. Dropping this flushes too, and
/// waits a moment for a writer that is behind.
pub struct LogBuffers {
    sinks: Arc<LogSinks>,
    core: Core,
    buffers: Vec<Filled>,
    filesystem: Arc<Stats<FilesystemStat>>,
    torus: Arc<Stats<TorusStat>>,
    /// For filters that look at fields.
    scratch: Scratch,
}

impl LogBuffers {
    /// Empty buffers for the worker `core`.
    pub fn new(sinks: Arc<LogSinks>, core: Core) -> Self {
        let (filesystem, torus) = (sinks.filesystem_stats(), sinks.torus_stats());
        Self { sinks, core, buffers: Vec::new(), filesystem, torus, scratch: Scratch::default() }
    }

    /// How often [`Self::flush`] is to be called. Source: Envoy, `--file-flush-interval-msec`.
    pub fn flush_interval(&self) -> std::time::Duration {
        self.sinks.flush_interval()
    }

    /// Hands lines to the writer that are older than [`Self::flush_interval`], to the precision of the calls. Call it often.
    pub fn flush_aged(&mut self, now: Nanos) {
        let interval = self.sinks.flush_interval();
        for index in 0..self.buffers.len() {
            let Some(filled) = self.buffers.get_mut(index).filter(|filled| !filled.bytes.is_empty()) else { continue };
            // A line is as old as the first call that found it.
            let seen = *filled.seen.get_or_insert(now);
            if now.since(seen) >= interval && self.hand_over(index) {
                self.filesystem.increment(self.core, FilesystemStat::FlushedByTimer);
            }
        }
    }

    /// Hands every line written so far to the writer.
    pub fn flush(&mut self) {
        for index in 0..self.buffers.len() {
            if self.hand_over(index) {
                self.filesystem.increment(self.core, FilesystemStat::FlushedByTimer);
            }
        }
    }

    fn append(&mut self, sink: &Arc<Sink>, write: impl FnOnce(&mut Vec<u8>)) {
        let index = sink.index();
        if self.buffers.len() <= index {
            self.buffers.resize_with(index + 1, Filled::default);
        }
        let Some(filled) = self.buffers.get_mut(index) else { return };
        let before = filled.bytes.len();
        write(&mut filled.bytes);
        let added = filled.bytes.len().saturating_sub(before) as u64;
        filled.lines += 1;
        filled.sink = index;
        let is_full = filled.bytes.len() >= self.sinks.flush_bytes_min();
        self.filesystem.increment(self.core, FilesystemStat::WriteBuffered);
        self.filesystem.add(self.core, FilesystemStat::WriteTotalBuffered, added);
        if is_full {
            self.hand_over(index);
        }
    }

    /// Whether there was something to hand over.
    fn hand_over(&mut self, index: usize) -> bool {
        let Some(filled) = self.buffers.get_mut(index) else { return false };
        if filled.bytes.is_empty() {
            return false;
        }
        let full = std::mem::replace(filled, self.sinks.spare());
        if let Err(mut refused) = self.sinks.hand_over(full) {
            let bytes = refused.bytes.len() as u64;
            self.torus.add(self.core, TorusStat::AccessLogLinesDropped, refused.lines);
            self.torus.add(self.core, TorusStat::AccessLogBytesDropped, bytes);
            self.filesystem.subtract(self.core, FilesystemStat::WriteTotalBuffered, bytes);
            refused.clear();
            // The memory stays: the spare one, still without any, is let go.
            *filled = refused;
        }
        true
    }
}

impl Drop for LogBuffers {
    fn drop(&mut self) {
        self.sinks.wait_for_room();
        self.flush();
    }
}

#[cfg(test)]
mod tests;
