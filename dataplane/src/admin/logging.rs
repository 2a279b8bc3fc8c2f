//! `/logging`: the levels of the program's own log.

use std::fmt::Write;

use super::Admin;
use super::request::{Reply, Request};
use crate::telemetry::program_log::{Level, LogControl, LogError, pairs};

/// Changes what is asked for and shows every level.
pub(super) fn change(admin: &Admin, request: &Request) -> Reply {
    let Some(log) = &admin.log else { return Reply::error(503, "the log cannot be changed\n") };
    let changed = match request.parameters.as_slice() {
        [] => Ok(()),
        [(name, level)] => apply(log, name, level),
        _ => Err("only one name and level at a time; use paths for several".to_owned()),
    };
    match changed {
        Ok(()) => Reply::text(active(log)),
        Err(error) => Reply::error(400, format!("error: {error}\n\n{USAGE}{}", active(log))),
    }
}

fn apply(log: &LogControl, name: &str, level: &str) -> Result<(), String> {
    let set = |changes: Result<Vec<(&str, &str)>, LogError>| changes.and_then(|changes| log.set(&changes));
    let changed = match name {
        "level" => Level::named(level).map(|level| log.set_all(level)).ok_or(LogError::UnknownLevel),
        // A group is a component and its level here too.
        "paths" | "group" => set(pairs(level)),
        name => set(Ok(vec![(name, level)])),
    };
    changed.map_err(|error| error.to_string())
}

fn active(log: &LogControl) -> String {
    let mut text = String::from("active loggers:\n");
    for (name, level) in log.levels() {
        let _ = writeln!(text, "  {name}: {}", level.name());
    }
    text.push('\n');
    text
}

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
usage: /logging?group=<group_name>:<level> (change group of loggers)
levels: trace debug info warning error critical off\x20
";
