use super::*;
use crate::telemetry::counters::Core;
use crate::telemetry::names::HttpStat;
use crate::telemetry::registry::Registry;
use crate::telemetry::view::StatsView;

fn stats(values: &[u64]) -> Vec<Stat> {
    let registry = Registry::new(1);
    let group = registry.group::<HttpStat>("http.in.");
    for value in values {
        group.record(Core(0), HttpStat::DownstreamRqTime, *value);
    }
    let filter = Regex::new("downstream_rq_(time|total)$").ok();
    StatsView::default().collect(&registry, &Selection { filter, ..Selection::default() })
}

/// Recorded from Envoy 1.40 after the same values.
#[test]
fn quantiles_read_as_in_envoy() {
    let check = |values: &[u64], expected: &str| {
        let text = text(&stats(values), Buckets::Summary, &StatsConfig::default());
        assert_eq!(text, format!("http.in.downstream_rq_total: 0\nhttp.in.downstream_rq_time: {expected}\n"));
    };
    check(&[], "No recorded values");
    check(
        &[2],
        "P0(nan,2.05) P25(nan,2.05) P50(nan,2.05) P75(nan,2.05) P90(nan,2.05) P95(nan,2.05) P99(nan,2.05) \
         P99.5(nan,2.05) P99.9(nan,2.05) P100(nan,2.05)",
    );
    check(
        &[2, 2, 3, 3],
        "P0(nan,2.033333333333333) P25(nan,2.033333333333333) P50(nan,2.066666666666667) P75(nan,3.033333333333333) \
         P90(nan,3.066666666666667) P95(nan,3.066666666666667) P99(nan,3.066666666666667) \
         P99.5(nan,3.066666666666667) P99.9(nan,3.066666666666667) P100(nan,3.066666666666667)",
    );
    check(
        &[0, 0, 1, 1],
        "P0(nan,0) P25(nan,0) P50(nan,0) P75(nan,1.0333333333333334) P90(nan,1.0666666666666667) \
         P95(nan,1.0666666666666667) P99(nan,1.0666666666666667) P99.5(nan,1.0666666666666667) \
         P99.9(nan,1.0666666666666667) P100(nan,1.0666666666666667)",
    );
    check(
        &[31],
        "P0(nan,31.5) P25(nan,31.5) P50(nan,31.5) P75(nan,31.5) P90(nan,31.5) P95(nan,31.5) P99(nan,31.5) \
         P99.5(nan,31.5) P99.9(nan,31.5) P100(nan,31.5)",
    );
}

#[test]
fn buckets_read_as_in_envoy() {
    let check = |buckets: Buckets, expected: &str| {
        let text = text(&stats(&[0, 0, 1, 1, 700_000]), buckets, &StatsConfig::default());
        let line = text.lines().last().unwrap_or_default();
        assert_eq!(line, format!("http.in.downstream_rq_time: {expected}"));
    };
    check(
        Buckets::Cumulative,
        "B0.5(0,2) B1(0,4) B5(0,4) B10(0,4) B25(0,4) B50(0,4) B100(0,4) B250(0,4) B500(0,4) B1000(0,4) B2500(0,4) \
         B5000(0,4) B10000(0,4) B30000(0,4) B60000(0,4) B300000(0,4) B600000(0,4) B1.8e+06(0,5) B3.6e+06(0,5)",
    );
    check(
        Buckets::Disjoint,
        "B0.5(0,2) B1(0,2) B5(0,0) B10(0,0) B25(0,0) B50(0,0) B100(0,0) B250(0,0) B500(0,0) B1000(0,0) B2500(0,0) \
         B5000(0,0) B10000(0,0) B30000(0,0) B60000(0,0) B300000(0,0) B600000(0,0) B1.8e+06(0,1) B3.6e+06(0,0)",
    );
    let detailed = text(&stats(&[0, 0, 1, 17]), Buckets::Detailed, &StatsConfig::default());
    assert!(
        detailed.contains(
            "http.in.downstream_rq_time:\n  totals=0,0:2, 1,0.1:1, 17,1:1\n  intervals=\n  summary=P0(nan,0)"
        )
    );
}

#[test]
fn json_has_the_shape_of_envoy() {
    let config = StatsConfig::default();
    let summary = json(&stats(&[]), Buckets::Summary, &config);
    let nothing = "{\"cumulative\":null,\"interval\":null}";
    let expected = format!(
        "{{\"stats\":[{{\"name\":\"http.in.downstream_rq_total\",\"value\":0}},{{\"histograms\":{{\"supported_quantiles\":\
         [0,25,50,75,90,95,99,99.5,99.9,100],\"computed_quantiles\":[{{\"name\":\"http.in.downstream_rq_time\",\
         \"values\":[{}]}}]}}}}]}}",
        [nothing; 10].join(",")
    );
    assert_eq!(summary, expected);
    for buckets in [Buckets::Summary, Buckets::Cumulative, Buckets::Disjoint, Buckets::Detailed] {
        let text = json(&stats(&[1, 20]), buckets, &config);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
    }
    let bounded = json(&stats(&[1]), Buckets::Cumulative, &config);
    assert!(bounded.contains("{\"upper_bound\":0.5,\"interval\":0,\"cumulative\":0},{\"upper_bound\":1,"), "{bounded}");
}
