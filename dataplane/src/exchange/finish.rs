//! The end of a request: statistics and access logs.

use super::{After, Exchange, Scope};
use crate::telemetry::format::LogType;
use crate::telemetry::names::HttpStat;

impl Exchange {
    pub(super) fn finish(&mut self, scope: &Scope<'_>, after: After) {
        let core = scope.core;
        self.deadlines.clear_all();
        let elapsed = self.elapsed(core);
        self.info.complete = Some(elapsed);
        let manager = scope.manager;
        manager.stats.decrement(core.core, HttpStat::DownstreamRqActive);
        if self.asks_upgrade {
            manager.stats.decrement(core.core, HttpStat::DownstreamCxUpgradesActive);
        }
        if !self.filters.is_empty() {
            self.filters.on_finish(&self.info);
        }
        manager.count_reply(core.core, self.info.response_code, elapsed);
        if matches!(after, After::Abort | After::Gone) {
            self.info.connection_termination_details = None;
        }
        self.log(scope, LogType::DownstreamEnd);
    }

    /// Counts a reply that is sent before the request is all here; what is left of the request is not read.
    pub(super) fn count_early(&self, scope: &Scope<'_>) {
        if !self.upload.is_received() {
            let (core, stats) = (scope.core.core, &scope.manager.stats);
            stats.increment(core, HttpStat::DownstreamRqResponseBeforeRqComplete);
            stats.increment(core, HttpStat::DownstreamRqRxReset);
        }
    }

    pub(super) fn log_start(&self, scope: &Scope<'_>) {
        if scope.manager.log_on_new_request {
            self.log(scope, LogType::DownstreamStart);
        }
    }

    fn log(&self, scope: &Scope<'_>, log_type: LogType) {
        let logs = &scope.manager.access_logs;
        if logs.is_empty() {
            return;
        }
        let core = scope.core;
        let context = self.format_context(log_type, core);
        let random = core.random.borrow_mut().next_u64();
        let mut buffers = core.log_buffers.borrow_mut();
        for log in logs {
            log.log(&mut buffers, &context, random);
        }
    }
}
