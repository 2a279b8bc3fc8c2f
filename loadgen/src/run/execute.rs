//! One run: workers on their cores, their updates gathered each second, their records added at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use super::crew::{Begin, Crew, Place};
use super::live::{Heading, Live};
use super::setup::Setup;
use super::watch::{Usage, WatchError};
use crate::distributed::Remote;
use crate::record::{Counts, Record};
use crate::worker::{self, Finished, Load, Update};

/// Points of a series; when there are more, neighbours are joined, so that a long run takes no more memory.
const POINTS_MAX: usize = 600;

/// A stretch shorter than this, in nanoseconds, is no point of its own: its rates would be noise.
const SHORT: u64 = 500_000_000;

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub record: Record,
    /// Of each target.
    pub by_target: Vec<Record>,
    pub workers: Vec<worker::Used>,
    pub series: Vec<Point>,
    pub interrupted: bool,
    /// When measuring began.
    pub began: SystemTime,
    /// The measured part, in nanoseconds.
    pub wall: u64,
    /// What the target used in the measured part.
    pub target: Option<Usage>,
    /// Workers elsewhere.
    pub remotes: Vec<Remote>,
    /// What is known of those that were lost.
    pub lost: Vec<String>,
}

/// One stretch of the run.
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// In nanoseconds since the start.
    pub from: u64,
    pub to: u64,
    pub counts: Counts,
    /// Response times: nanoseconds and how many.
    pub response: BTreeMap<u64, u64>,
    /// Processor time of the target, in microseconds.
    pub target_cpu: u64,
    /// The latest that a request was written behind its time, in nanoseconds.
    pub lag_max: u64,
}

impl Point {
    /// The time below which `percentile` (0 to 100) of the responses lie; 0 when there are none.
    pub fn percentile(&self, percentile: f64) -> u64 {
        let total: u64 = self.response.values().sum();
        let wanted = (total as f64 * percentile / 100.0).ceil() as u64;
        let mut seen = 0;
        for (value, count) in &self.response {
            seen += count;
            if seen >= wanted.max(1) {
                return *value;
            }
        }
        0
    }

    fn join(&mut self, later: Point) {
        self.to = later.to;
        self.counts += &later.counts;
        self.target_cpu += later.target_cpu;
        self.lag_max = self.lag_max.max(later.lag_max);
        for (value, count) in later.response {
            *self.response.entry(value).or_default() += count;
        }
    }
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    #[error("cannot start a worker: {0}; try fewer --threads")]
    Worker(std::io::Error),
    #[error("a worker of this program ended before its time; this is a fault of torus-load")]
    Lost,
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// Runs `load` and gives what happened; `stop` ends it early.
pub fn execute(setup: &Setup, load: &Load, stop: &Arc<AtomicBool>) -> Result<Outcome, ExecuteError> {
    let crew = Crew::start(setup, load, Place { first: 0, of: setup.threads }, Begin::now())?;
    let mut gather = Gather::new(setup, setup.threads, load);
    loop {
        if stop.load(Ordering::Relaxed) {
            crew.stop.store(true, Ordering::Relaxed);
        }
        if let Some(start) = crew.start.get() {
            gather.begin(*start);
        }
        // Asked first: what a worker sent before it ended is then in the channel already.
        let has_ended = crew.has_ended();
        match crew.updates.recv_timeout(Duration::from_millis(20)) {
            Ok(update) => gather.update(update)?,
            Err(RecvTimeoutError::Timeout) if has_ended => break,
            Err(RecvTimeoutError::Timeout) => gather.tick()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    gather.outcome(crew.finish()?, stop.load(Ordering::Relaxed))
}

/// The series while it grows.
pub(crate) struct Gather<'s> {
    setup: &'s Setup,
    measured_from: u64,
    start: Option<Instant>,
    points: Vec<Point>,
    /// Of each worker and target, at its last update.
    last: Vec<Counts>,
    threads: usize,
    live: Option<Live>,
    heading: Heading,
    /// Updates of the current stretch.
    current: Point,
    heard: usize,
    target_began: Option<Usage>,
    target_now: Option<Usage>,
    memory_peak: u64,
    /// Seconds that make a point.
    per_point: usize,
    in_point: usize,
}

impl<'s> Gather<'s> {
    /// For a run of `threads` workers, wherever they are.
    pub(crate) fn new(setup: &'s Setup, threads: usize, load: &Load) -> Gather<'s> {
        let measured_from = load.measured_from();
        let heading = Heading { title: setup.title(), measured_from, end: load.end() };
        Gather {
            setup,
            measured_from,
            start: None,
            points: Vec::new(),
            last: vec![Counts::default(); threads * setup.all().count()],
            threads,
            live: if setup.is_live { Live::start() } else { None },
            heading,
            current: Point::default(),
            heard: 0,
            target_began: None,
            target_now: None,
            memory_peak: 0,
            per_point: 1,
            in_point: 0,
        }
    }

    /// The run begins, or began, at `start`.
    pub(crate) fn begin(&mut self, start: Instant) {
        self.start = Some(start);
    }

    /// Takes the target's first reading when measuring begins.
    pub(crate) fn tick(&mut self) -> Result<(), ExecuteError> {
        let Some(watch) = &self.setup.watch else { return Ok(()) };
        let Some(start) = self.start else { return Ok(()) };
        let measured_from = start + Duration::from_nanos(self.measured_from);
        if self.target_began.is_none() && Instant::now() >= measured_from {
            let usage = watch.usage()?;
            self.target_began = Some(usage);
            self.target_now = Some(usage);
            self.memory_peak = usage.memory;
        }
        Ok(())
    }

    pub(crate) fn update(&mut self, update: Update) -> Result<(), ExecuteError> {
        self.tick()?;
        if update.worker >= self.threads {
            return Ok(());
        }
        let at = update.target * self.threads + update.worker;
        let Some(last) = self.last.get_mut(at) else { return Ok(()) };
        self.current.counts += &since(&update.counts, last);
        *last = update.counts;
        for (value, count) in update.response {
            *self.current.response.entry(value).or_default() += count;
        }
        self.current.to = self.current.to.max(update.at);
        self.current.lag_max = self.current.lag_max.max(update.lag_max);
        self.heard += 1;
        if self.heard >= self.last.len() {
            self.finish_second()?;
        }
        Ok(())
    }

    fn finish_second(&mut self) -> Result<(), ExecuteError> {
        self.heard = 0;
        let mut point = std::mem::take(&mut self.current);
        point.from = self.points.last().map_or(self.measured_from, |last| last.to);
        if let (Some(watch), Some(before)) = (&self.setup.watch, self.target_now) {
            let now = watch.usage()?;
            point.target_cpu = (now.user + now.system).saturating_sub(before.user + before.system);
            self.memory_peak = self.memory_peak.max(now.memory);
            self.target_now = Some(now);
        }
        if self.live.is_none() {
            self.setup.progress(&point);
        }
        // What came in after the last whole second belongs to it.
        let remainder = point.to.saturating_sub(point.from) < SHORT;
        match self.points.last_mut() {
            Some(last) if remainder || self.in_point < self.per_point => last.join(point),
            _ => {
                self.points.push(point);
                self.in_point = 0;
            }
        }
        self.in_point += 1;
        if let Some(live) = &mut self.live {
            live.show(&self.heading, &self.points);
        }
        if self.points.len() > POINTS_MAX {
            let mut joined: Vec<Point> = Vec::with_capacity(POINTS_MAX);
            for (index, point) in self.points.drain(..).enumerate() {
                match joined.last_mut() {
                    Some(last) if index % 2 == 1 => last.join(point),
                    _ => joined.push(point),
                }
            }
            self.points = joined;
            self.per_point *= 2;
        }
        Ok(())
    }

    /// All that the workers found.
    pub(crate) fn outcome(mut self, finished: Vec<Finished>, interrupted: bool) -> Result<Outcome, ExecuteError> {
        if self.heard > 0 && self.current.counts != Counts::default() {
            self.finish_second()?;
        }
        let began = self.start.map(|start| start + Duration::from_nanos(self.measured_from));
        let mut outcome = Outcome {
            record: Record::default(),
            by_target: self.setup.all().map(|_| Record::default()).collect(),
            workers: Vec::new(),
            series: self.points,
            interrupted,
            began: SystemTime::now() - began.map(|began| began.elapsed()).unwrap_or_default(),
            wall: finished.iter().map(|finished| finished.used.wall).max().unwrap_or_default(),
            target: None,
            remotes: Vec::new(),
            lost: Vec::new(),
        };
        for Finished { records, used } in finished {
            for (sum, record) in outcome.by_target.iter_mut().zip(&records) {
                outcome.record.add(record);
                sum.add(record);
            }
            outcome.workers.push(used);
        }
        if let (Some(began), Some(now)) = (self.target_began, self.target_now) {
            outcome.target = Some(Usage {
                user: now.user.saturating_sub(began.user),
                system: now.system.saturating_sub(began.system),
                memory: self.memory_peak,
            });
        }
        Ok(outcome)
    }
}

/// What was counted after `before`.
fn since(now: &Counts, before: &Counts) -> Counts {
    let mut errors = now.errors;
    for (count, before) in errors.iter_mut().zip(before.errors) {
        *count = count.saturating_sub(before);
    }
    Counts {
        planned: now.planned.saturating_sub(before.planned),
        sent: now.sent.saturating_sub(before.sent),
        succeeded: now.succeeded.saturating_sub(before.succeeded),
        errors,
        unsent: now.unsent.saturating_sub(before.unsent),
        blocked: now.blocked.saturating_sub(before.blocked),
        connections: now.connections.saturating_sub(before.connections),
        rewritten: now.rewritten.saturating_sub(before.rewritten),
        bytes_received: now.bytes_received.saturating_sub(before.bytes_received),
        messages_received: now.messages_received.saturating_sub(before.messages_received),
        renewed: now.renewed.saturating_sub(before.renewed),
        renewals_failed: now.renewals_failed.saturating_sub(before.renewals_failed),
    }
}
