//! `stats_config` of the bootstrap: tags, which stats exist, and the buckets of histograms.
//! Source: envoy.config.metrics.v3.StatsConfig.

use envoy_types::pb::envoy::config::metrics::v3 as proto;
use envoy_types::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher as Matcher;
use envoy_types::pb::envoy::config::metrics::v3::tag_specifier::TagValue;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::tags::TagExtractor;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::route::pattern::RegexMemory;
use crate::route::string_match::StringMatcher;

/// How stats are tagged, filtered and bucketed.
#[derive(Debug)]
pub struct StatsConfig {
    /// Takes tags out of names.
    pub tags: TagExtractor,
    filter: NameFilter,
    buckets: Vec<(StringMatcher, Vec<f64>)>,
}

/// Which names exist at all.
#[derive(Debug, Default)]
enum NameFilter {
    #[default]
    All,
    None,
    Only(Vec<StringMatcher>),
    AllBut(Vec<StringMatcher>),
}

impl Default for StatsConfig {
    fn default() -> Self {
        Self { tags: TagExtractor::with_defaults(), filter: NameFilter::All, buckets: Vec::new() }
    }
}

impl StatsConfig {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::StatsConfig, context: &mut ParseContext) -> Result<Self, Refused> {
        let use_defaults = config.use_all_default_tags.as_ref().is_none_or(|value| value.value);
        let mut tags = if use_defaults { TagExtractor::with_defaults() } else { TagExtractor::default() };
        let own_tags = context.each("stats_tags", &config.stats_tags, |tag, context| {
            let name = context.non_empty("tag_name", &tag.tag_name)?;
            let added = match &tag.tag_value {
                Some(TagValue::Regex(pattern)) if !pattern.is_empty() => tags.add_pattern(name, pattern),
                Some(TagValue::FixedValue(value)) => {
                    tags.add_fixed(name, value);
                    Ok(())
                }
                // With the defaults on, naming one of them again changes nothing.
                _ if use_defaults => Ok(()),
                _ => tags.add_default(name),
            };
            added.map_err(|error| context.reject("regex", error.to_string()))
        });
        let filter = match config.stats_matcher.as_ref().and_then(|matcher| matcher.stats_matcher.as_ref()) {
            None | Some(Matcher::RejectAll(false)) => Ok(NameFilter::All),
            Some(Matcher::RejectAll(true)) => Ok(NameFilter::None),
            Some(Matcher::InclusionList(list)) => {
                context.within("stats_matcher.inclusion_list", |context| patterns(list, context)).map(NameFilter::Only)
            }
            Some(Matcher::ExclusionList(list)) => context
                .within("stats_matcher.exclusion_list", |context| patterns(list, context))
                .map(NameFilter::AllBut),
        };
        let buckets =
            context.each("histogram_bucket_settings", &config.histogram_bucket_settings, |setting, context| {
                let matcher = context.required("match", &setting.r#match)?;
                let matcher = context.within("match", |context| StringMatcher::parse(matcher, context))?;
                let ascending = setting.buckets.windows(2).all(|pair| matches!(pair, [low, high] if low < high));
                let positive = setting.buckets.first().is_none_or(|first| *first > 0.0);
                if !ascending || !positive {
                    return Err(context.reject("buckets", "must be above 0 and ascend, none twice"));
                }
                Ok((matcher, setting.buckets.clone()))
            });
        own_tags?;
        Ok(Self { tags, filter: filter?, buckets: buckets? })
    }

    /// Decides over names, one after the other.
    pub fn admission(&self) -> Admission<'_> {
        Admission { filter: &self.filter, memory: RegexMemory::default() }
    }

    /// The bucket bounds of the histogram `name`.
    pub fn buckets_of(&self, name: &str) -> Vec<f64> {
        let mut memory = RegexMemory::default();
        let own = self.buckets.iter().find(|(matcher, _)| matcher.matches(name.as_bytes(), &mut memory));
        match own {
            Some((_, bounds)) if !bounds.is_empty() => bounds.clone(),
            _ => DEFAULT_BUCKETS.to_vec(),
        }
    }
}

/// Decides which names exist.
pub struct Admission<'a> {
    filter: &'a NameFilter,
    memory: RegexMemory,
}

impl Admission<'_> {
    /// Whether the stat `name` exists.
    pub fn admits(&mut self, name: &str) -> bool {
        let memory = &mut self.memory;
        let mut any = |patterns: &[StringMatcher]| patterns.iter().any(|one| one.matches(name.as_bytes(), memory));
        match self.filter {
            NameFilter::All => true,
            NameFilter::None => false,
            NameFilter::Only(patterns) => any(patterns),
            NameFilter::AllBut(patterns) => !any(patterns),
        }
    }
}

fn patterns(list: &matcher::ListStringMatcher, context: &mut ParseContext) -> Result<Vec<StringMatcher>, Refused> {
    if list.patterns.is_empty() {
        return Err(context.reject("patterns", "must not be empty"));
    }
    context.each("patterns", &list.patterns, StringMatcher::parse)
}

/// Bucket bounds in milliseconds where none are configured. Source: Envoy, HistogramBucketSettings.
const DEFAULT_BUCKETS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

    use super::*;

    fn matching(pattern: MatchPattern) -> matcher::StringMatcher {
        matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
    }

    fn parsed(config: proto::StatsConfig) -> Result<StatsConfig, Vec<String>> {
        let mut context = ParseContext::new(1);
        StatsConfig::parse(&config, &mut context)
            .map_err(|_| context.problems.iter().map(|problem| problem.to_string()).collect())
    }

    #[test]
    fn lists_say_which_stats_exist() {
        let list = || matcher::ListStringMatcher {
            patterns: vec![
                matching(MatchPattern::Prefix("cluster.a".into())),
                matching(MatchPattern::Suffix("xx".into())),
            ],
        };
        let check = |choice: Option<Matcher>, expected: [bool; 3]| {
            let config = proto::StatsConfig {
                stats_matcher: Some(proto::StatsMatcher { stats_matcher: choice }),
                ..Default::default()
            };
            let config = parsed(config).unwrap();
            let mut admission = config.admission();
            let admitted =
                ["cluster.a.x", "server.live", "http.in.downstream_rq_2xx"].map(|name| admission.admits(name));
            assert_eq!(admitted, expected);
        };
        check(None, [true, true, true]);
        check(Some(Matcher::RejectAll(false)), [true, true, true]);
        check(Some(Matcher::RejectAll(true)), [false, false, false]);
        check(Some(Matcher::InclusionList(list())), [true, false, true]);
        check(Some(Matcher::ExclusionList(list())), [false, true, false]);
    }

    #[test]
    fn buckets_are_those_of_the_first_match() {
        let setting = |prefix: &str, buckets: &[f64]| proto::HistogramBucketSettings {
            r#match: Some(matching(MatchPattern::Prefix(prefix.into()))),
            buckets: buckets.to_vec(),
            ..Default::default()
        };
        let config = |settings| proto::StatsConfig { histogram_bucket_settings: settings, ..Default::default() };
        let buckets = parsed(config(vec![setting("cluster.", &[1.0, 2.0]), setting("", &[3.0])]));
        assert_eq!(buckets.unwrap_err(), ["histogram_bucket_settings[1].match.prefix: must not be empty"]);
        let buckets = parsed(config(vec![setting("cluster.", &[1.0, 2.0])])).unwrap();
        assert_eq!(buckets.buckets_of("cluster.a.upstream_rq_time"), [1.0, 2.0]);
        assert_eq!(buckets.buckets_of("http.a.downstream_rq_time"), DEFAULT_BUCKETS);
        let descending = parsed(config(vec![setting("a", &[2.0, 1.0])]));
        assert_eq!(
            descending.unwrap_err(),
            ["histogram_bucket_settings[0].buckets: must be above 0 and ascend, none twice"]
        );
    }

    #[test]
    fn tags_refuse_what_they_cannot_use() {
        let tag = |name: &str, value| proto::TagSpecifier { tag_name: name.into(), tag_value: value };
        let config = |tags, defaults: bool| proto::StatsConfig {
            stats_tags: tags,
            use_all_default_tags: Some(envoy_types::pb::google::protobuf::BoolValue { value: defaults }),
            ..Default::default()
        };
        let own = || tag("own", Some(TagValue::Regex("^own\\.((.*?)\\.)".into())));
        let both = parsed(config(vec![own(), tag("envoy.cluster_name", None)], false)).unwrap();
        assert_eq!(both.tags.extract("own.x.cluster").tags, [("own".to_owned(), "x".to_owned())]);
        let unknown = parsed(config(vec![tag("own", None), tag("b", Some(TagValue::Regex("(".into())))], false));
        let problems = unknown.unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("stats_tags[0].regex: `own` is not one of Envoy's default tags"));
    }
}
