//! Which requests an access log (or a local-reply mapper) takes. Source: envoy.config.accesslog.v3.AccessLogFilter.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3 as proto;
use torus_codec::headers::{HeaderMap, Known};

use super::format::{FormatContext, LogType, grpc_code};
use super::stream_info::{ResponseFlag, ResponseFlags};
use crate::config::parse::ParseContext;
use crate::config::parse::runtime::Fraction;
use crate::config::reject::Refused;
use crate::route::Scratch;
use crate::route::header_match::HeaderMatcher;

/// A compiled AccessLogFilter.
#[derive(Debug)]
pub struct LogFilter(Test);

#[derive(Debug)]
enum Test {
    StatusCode(Comparison),
    /// In milliseconds.
    Duration(Comparison),
    /// A set fraction of requests; the same ones for a request id, unless each is drawn on its own.
    Fraction {
        fraction: Fraction,
        independent: bool,
    },
    Header(HeaderMatcher),
    /// Any of these, or any at all where there is none.
    Flags(ResponseFlags),
    GrpcStatus {
        codes: Box<[u64]>,
        exclude: bool,
    },
    LogType {
        types: Box<[LogType]>,
        exclude: bool,
    },
    All(Box<[LogFilter]>),
    Any(Box<[LogFilter]>),
    Constant(bool),
}

#[derive(Clone, Copy, Debug)]
struct Comparison {
    operator: proto::comparison_filter::Op,
    value: u64,
}

impl LogFilter {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::AccessLogFilter, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::access_log_filter::FilterSpecifier as Kind;
        let Some(kind) = &config.filter_specifier else { return Err(context.reject("", "names no filter")) };
        let later = |field: &str, context: &mut ParseContext| {
            Err::<Test, _>(context.reject(field, "is not there yet in this version"))
        };
        Ok(Self(match kind {
            Kind::StatusCodeFilter(filter) => context.within("status_code_filter", |context| {
                Comparison::parse(&filter.comparison, context).map(Test::StatusCode)
            })?,
            Kind::DurationFilter(filter) => context.within("duration_filter", |context| {
                Comparison::parse(&filter.comparison, context).map(Test::Duration)
            })?,
            // Only the health check filter marks a request as a health check.
            Kind::NotHealthCheckFilter(_) => Test::Constant(true),
            // Without tracing no request is traced.
            Kind::TraceableFilter(_) => Test::Constant(false),
            Kind::RuntimeFilter(filter) => context.within("runtime_filter", |context| fraction(filter, context))?,
            Kind::AndFilter(filter) => {
                Test::All(context.within("and_filter", |context| several(&filter.filters, context))?)
            }
            Kind::OrFilter(filter) => {
                Test::Any(context.within("or_filter", |context| several(&filter.filters, context))?)
            }
            Kind::HeaderFilter(filter) => context.within("header_filter", |context| {
                let header = context.required("header", &filter.header)?;
                context.within("header", |context| HeaderMatcher::parse(header, context)).map(Test::Header)
            })?,
            Kind::ResponseFlagFilter(filter) => {
                context.within("response_flag_filter", |context| flags(&filter.flags, context).map(Test::Flags))?
            }
            Kind::GrpcStatusFilter(filter) => {
                let codes = filter.statuses.iter().filter_map(|code| u64::try_from(*code).ok());
                Test::GrpcStatus { codes: codes.collect(), exclude: filter.exclude }
            }
            Kind::LogTypeFilter(filter) => {
                let types = filter.types().map(|kind| LogType::from_name(kind.as_str_name()));
                Test::LogType { types: types.collect(), exclude: filter.exclude }
            }
            Kind::ExtensionFilter(_) => later("extension_filter", context)?,
            Kind::MetadataFilter(_) => later("metadata_filter", context)?,
        }))
    }

    /// Whether the request is taken; `random` decides `runtime_filter` where the request id does not.
    pub fn takes(&self, context: &FormatContext<'_>, random: u64, scratch: &mut Scratch) -> bool {
        match &self.0 {
            Test::StatusCode(comparison) => comparison.holds(context.info.response_code.into()),
            Test::Duration(comparison) => {
                let lasted = context.info.complete;
                let lasted = lasted.or_else(|| context.now.duration_since(context.info.start?).ok());
                lasted.is_some_and(|lasted| comparison.holds(whole_milliseconds(lasted)))
            }
            Test::Fraction { fraction, independent } => {
                let from_id = if *independent { None } else { number_of_request_id(context.request) };
                fraction.includes(from_id.unwrap_or(random))
            }
            Test::Header(matcher) => matcher.matches(context.request, scratch),
            Test::Flags(flags) if flags.is_empty() => !context.info.flags.is_empty(),
            Test::Flags(flags) => flags.intersects(context.info.flags),
            Test::GrpcStatus { codes, exclude } => {
                grpc_code(context).is_some_and(|code| codes.contains(&code)) != *exclude
            }
            Test::LogType { types, exclude } => types.contains(&context.log_type) != *exclude,
            Test::All(filters) => filters.iter().all(|filter| filter.takes(context, random, scratch)),
            Test::Any(filters) => filters.iter().any(|filter| filter.takes(context, random, scratch)),
            Test::Constant(taken) => *taken,
        }
    }
}

fn several(filters: &[proto::AccessLogFilter], context: &mut ParseContext) -> Result<Box<[LogFilter]>, Refused> {
    if filters.len() < 2 {
        return Err(context.reject("filters", "needs at least two"));
    }
    context.each("filters", filters, LogFilter::parse).map(Into::into)
}

fn fraction(filter: &proto::RuntimeFilter, context: &mut ParseContext) -> Result<Test, Refused> {
    let key = context.non_empty("runtime_key", &filter.runtime_key)?;
    let default = filter.percent_sampled.as_ref().map_or(Fraction { numerator: 0, denominator: 100 }, Fraction::from);
    let numerator = context.runtime.integer(key, default.numerator.into());
    let fraction = Fraction { numerator: u32::try_from(numerator).unwrap_or(u32::MAX), ..default };
    Ok(Test::Fraction { fraction, independent: filter.use_independent_randomness })
}

fn flags(names: &[String], context: &mut ParseContext) -> Result<ResponseFlags, Refused> {
    let mut flags = ResponseFlags::default();
    for (index, name) in names.iter().enumerate() {
        match ResponseFlag::ALL.iter().find(|flag| flag.short() == name) {
            Some(flag) => flags.set(*flag),
            None => return Err(context.reject(&format!("flags[{index}]"), format!("unknown response flag `{name}`"))),
        }
    }
    Ok(flags)
}

impl Comparison {
    fn parse(config: &Option<proto::ComparisonFilter>, context: &mut ParseContext) -> Result<Self, Refused> {
        let config = context.required("comparison", config)?;
        context.within("comparison", |context| {
            let value = context.required("value", &config.value)?;
            let default = value.default_value.into();
            Ok(Self { operator: config.op(), value: context.runtime.integer(&value.runtime_key, default) })
        })
    }

    fn holds(self, value: u64) -> bool {
        use proto::comparison_filter::Op;
        match self.operator {
            Op::Eq => value == self.value,
            Op::Ge => value >= self.value,
            Op::Le => value <= self.value,
            Op::Ne => value != self.value,
        }
    }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The first 32 bits of `x-request-id`, so that every proxy on the way takes the same requests.
fn number_of_request_id(request: &HeaderMap) -> Option<u64> {
    let id = std::str::from_utf8(request.get_known(Known::XRequestId)?).ok()?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::stream_info::StreamInfo;
    use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;

    fn filter(yaml: &str) -> Result<LogFilter, String> {
        let config =
            torus_xds::from_yaml::<proto::AccessLogFilter>(yaml).map_err(|problems| format!("{problems:?}"))?;
        let mut context = ParseContext::new(1);
        LogFilter::parse(&config, &mut context)
            .map_err(|_| context.problems.iter().map(ToString::to_string).collect::<Vec<_>>().concat())
    }

    #[test]
    fn each_filter_takes_its_requests() {
        let mut info =
            StreamInfo { response_code: 503, complete: Some(Duration::from_millis(20)), ..StreamInfo::default() };
        info.flags.set(ResponseFlag::UpstreamOverflow);
        let mut request = HeaderMap::default();
        request.append_known(Known::XRequestId, b"00000009-0000-4000-8000-000000000000");
        request.append_known(Known::UserAgent, b"probe");
        let check = |yaml: &str, expect: bool| {
            let context = FormatContext { log_type: LogType::DownstreamEnd, ..FormatContext::new(&info, &request) };
            let filter = filter(yaml).unwrap_or_else(|problem| panic!("{yaml}: {problem}"));
            assert_eq!(filter.takes(&context, 50, &mut Scratch::default()), expect, "{yaml}");
        };
        let status = |op: &str, value: u32| {
            format!(
                "status_code_filter: {{comparison: {{op: {op}, value: {{default_value: {value}, runtime_key: k}}}}}}"
            )
        };
        check(&status("EQ", 503), true);
        check(&status("GE", 503), true);
        check(&status("GE", 504), false);
        check(&status("LE", 502), false);
        check(&status("NE", 200), true);
        check("duration_filter: {comparison: {op: GE, value: {default_value: 20, runtime_key: k}}}", true);
        check("duration_filter: {comparison: {op: GE, value: {default_value: 21, runtime_key: k}}}", false);
        check("not_health_check_filter: {}", true);
        check("traceable_filter: {}", false);
        check("runtime_filter: {runtime_key: k, percent_sampled: {numerator: 10}}", true);
        check("runtime_filter: {runtime_key: k, percent_sampled: {numerator: 9}}", false);
        let independent =
            "runtime_filter: {runtime_key: k, percent_sampled: {numerator: 51}, use_independent_randomness: true}";
        check(independent, true);
        check("header_filter: {header: {name: user-agent, string_match: {prefix: pro}}}", true);
        check("header_filter: {header: {name: x-none}}", false);
        check("response_flag_filter: {flags: [UO, UH]}", true);
        check("response_flag_filter: {flags: [UH]}", false);
        check("response_flag_filter: {}", true);
        check("grpc_status_filter: {statuses: [UNAVAILABLE]}", true);
        check("grpc_status_filter: {statuses: [UNAVAILABLE], exclude: true}", false);
        check("log_type_filter: {types: [DownstreamEnd]}", true);
        check("log_type_filter: {types: [DownstreamStart]}", false);
        check("and_filter: {filters: [{not_health_check_filter: {}}, {traceable_filter: {}}]}", false);
        check("or_filter: {filters: [{not_health_check_filter: {}}, {traceable_filter: {}}]}", true);
    }

    #[test]
    fn filters_that_cannot_work_are_refused() {
        let check = |yaml: &str, expect: &str| {
            let problem = filter(yaml).map(|_| ()).unwrap_err();
            assert!(problem.contains(expect), "{yaml}: {problem}");
        };
        check("{}", "names no filter");
        check("status_code_filter: {}", "status_code_filter.comparison: is required");
        check("response_flag_filter: {flags: [XX]}", "response_flag_filter.flags[0]: unknown response flag `XX`");
        check("and_filter: {filters: [{traceable_filter: {}}]}", "needs at least two");
        let metadata = FilterSpecifier::MetadataFilter(proto::MetadataFilter::default());
        let config = proto::AccessLogFilter { filter_specifier: Some(metadata) };
        assert!(LogFilter::parse(&config, &mut ParseContext::new(1)).is_err());
    }
}
