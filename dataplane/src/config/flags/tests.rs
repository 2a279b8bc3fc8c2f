//! Command lines as Istio and users write them.

use super::*;

fn parse(line: &str) -> Result<Options, UsageError> {
    Options::parse_from(std::iter::once("torus-proxy").chain(line.split_whitespace()))
}

fn check_wrong(line: &str, expected: &str) {
    let error = parse(line).expect_err(line);
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 1), "{line}");
}

#[test]
fn istios_flags_are_accepted() {
    let options = parse(
        "-c /etc/envoy-rev.json --drain-time-s 45 --drain-strategy immediate --local-address-ip-version v4 \
         --file-flush-interval-msec 1000 --file-flush-min-size-kb 4 --disable-hot-restart --allow-unknown-static-fields \
         --concurrency 2 -l warning --component-log-level misc:error,upstream:debug --log-format %Y-%m-%dT%T.%fZ%l \
         --skip-deprecated-logs --enable-core-dump",
    )
    .unwrap();
    assert_eq!(options.config_path.as_deref(), Some("/etc/envoy-rev.json"));
    assert_eq!(options.drain_time, Duration::from_secs(45));
    assert_eq!(options.drain_strategy, DrainStrategy::Immediate);
    assert_eq!(options.file_flush_interval, Duration::from_secs(1));
    assert_eq!(options.file_flush_bytes_min, 4096);
    assert_eq!(options.concurrency, Some(2));
    assert_eq!(options.log_level, LogLevel::Warning);
    let levels = [("misc".to_owned(), LogLevel::Error), ("upstream".to_owned(), LogLevel::Debug)];
    assert_eq!(options.component_log_levels, levels);
    assert!(options.allow_unknown_static_fields && options.skip_deprecated_logs);
}

#[test]
fn every_envoy_flag_is_accepted() {
    let options = parse(
        "--config-path a.yaml --config-yaml {} --mode init_only --log-level off --log-path /l --log-format-escaped \
         --log-stacktrace-single-entry --enable-fine-grain-logging --admin-address-path /a --service-cluster c --service-node n \
         --service-zone z --stats-tag a:b --stats-tag c:d --restart-epoch 1 --base-id 7 --base-id-path /b --use-dynamic-base-id \
         --skip-hot-restart-parent-stats --skip-hot-restart-on-no-parent --parent-shutdown-time-s 900 --socket-path @x \
         --socket-mode 600 --cpuset-threads --enable-mutex-tracing --disable-extensions a/b --reject-unknown-dynamic-fields \
         --ignore-unknown-dynamic-fields --allow-unknown-fields --cpu-list 0-2,5 --busy-poll-us 50 --io epoll",
    )
    .unwrap();
    assert_eq!(options.mode, Mode::InitOnly);
    assert_eq!(options.cpu_list, Some(vec![0, 1, 2, 5]));
    assert_eq!(options.busy_poll, Duration::from_micros(50));
    assert_eq!(options.io, IoChoice::Epoll);
    assert_eq!(options.stats_tags.len(), 2);
    assert!(options.allow_unknown_static_fields);
}

#[test]
fn defaults_are_envoys() {
    let options = parse("-c a").unwrap();
    assert_eq!(options.drain_time, Duration::from_secs(600));
    assert_eq!(options.file_flush_interval, Duration::from_secs(10));
    assert_eq!(options.file_flush_bytes_min, 65536);
    assert_eq!((options.log_level, options.mode), (LogLevel::Info, Mode::Serve));
    assert_eq!(parse("-c a -l warn").unwrap().log_level, LogLevel::Warning);
    assert_eq!(parse("-c a --concurrency 0").unwrap().concurrency, Some(1));
}

#[test]
fn mistakes_get_one_line() {
    check_wrong("", "no configuration: give a bootstrap file with -c FILE, or its text with --config-yaml");
    check_wrong("-c a --concurency 2", "unknown flag --concurency; did you mean --concurrency?");
    check_wrong("-c a --whatever", "unknown flag --whatever; --help lists all flags");
    check_wrong("a.yaml", "`a.yaml` is not a flag; a bootstrap file is given with -c FILE");
    check_wrong("-c", "--config-path needs a value");
    check_wrong("-c a --mode check", "--mode: `check` is none of serve, validate, init_only");
    check_wrong("-c a --concurrency many", "--concurrency: `many` is not a number in range");
    check_wrong("-c a -c b", "--config-path is given twice");
    check_wrong("-c a --cpu-list 3-1", "--cpu-list: `3-1` is not CPU numbers and ranges, for instance 0-3,6");
    check_wrong(
        "-c a --component-log-level x",
        "--component-log-level: `x` is not COMPONENT:LEVEL, for instance upstream:debug",
    );
    check_wrong(
        "-c a --stats-tag x",
        "--stats-tag: `x` is not NAME:VALUE, the name of letters and digits, the value without dots",
    );
}

#[test]
fn help_names_every_flags_effect() {
    let Err(UsageError::Show(help)) = parse("--help") else { panic!("help is shown") };
    assert!(help.contains("--config-path <FILE>") && help.contains("there is no hot restart"), "{help}");
    let Err(UsageError::Show(version)) = parse("--version") else { panic!("the version is shown") };
    assert!(version.starts_with("torus-proxy "), "{version}");
    assert_eq!(parse("--hot-restart-version"), Err(UsageError::Show("disabled\n".to_owned())));
    for argument in Flags::command()
        .get_arguments()
        .filter(|argument| argument.get_id() != "help" && argument.get_id() != "version")
    {
        assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
    }
}
