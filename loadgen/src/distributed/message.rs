//! What coordinator and workers tell each other, as protobuf.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::record::{Counts, Record, Times};
use crate::worker::{Finished, Update, Used};

/// From the coordinator; one of its fields is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Order {
    #[prost(message, optional, tag = "1")]
    pub(super) run: Option<Run>,
    /// The coordinator's clock, to be sent back.
    #[prost(uint64, optional, tag = "2")]
    pub(super) ping: Option<u64>,
    /// By the worker's clock.
    #[prost(uint64, optional, tag = "3")]
    pub(super) start_at: Option<u64>,
    #[prost(bool, tag = "4")]
    pub(super) stop: bool,
}

/// What to run.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Run {
    /// Flags of `torus-load run`.
    #[prost(string, repeated, tag = "1")]
    pub(super) arguments: Vec<String>,
    /// Which of the workers this one is.
    #[prost(uint32, tag = "2")]
    pub(super) number: u32,
    #[prost(uint32, tag = "3")]
    pub(super) count: u32,
    /// In place of the flag's: a search tries many.
    #[prost(double, optional, tag = "4")]
    pub(super) rate: Option<f64>,
}

/// From a worker; one of its fields is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Word {
    #[prost(message, optional, tag = "1")]
    pub(super) ready: Option<Ready>,
    #[prost(message, optional, tag = "2")]
    pub(super) pong: Option<Pong>,
    #[prost(message, optional, tag = "3")]
    pub(super) update: Option<UpdateWord>,
    #[prost(message, repeated, tag = "4")]
    pub(super) finished: Vec<FinishedWord>,
    #[prost(string, optional, tag = "5")]
    pub(super) failed: Option<String>,
}

/// The connections are open.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ready {
    /// Of each target, in the words of a report.
    #[prost(string, repeated, tag = "1")]
    pub(super) protocols: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Pong {
    #[prost(uint64, tag = "1")]
    pub(super) ping: u64,
    /// The worker's clock.
    #[prost(uint64, tag = "2")]
    pub(super) at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UpdateWord {
    #[prost(uint64, tag = "1")]
    pub(super) worker: u64,
    #[prost(uint64, tag = "2")]
    pub(super) target: u64,
    #[prost(uint64, tag = "3")]
    pub(super) at: u64,
    #[prost(uint64, repeated, tag = "4")]
    pub(super) counts: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub(super) values: Vec<u64>,
    #[prost(uint64, repeated, tag = "6")]
    pub(super) frequencies: Vec<u64>,
    #[prost(uint64, tag = "7")]
    pub(super) lag_max: u64,
}

/// Of one thread.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FinishedWord {
    #[prost(message, repeated, tag = "1")]
    records: Vec<RecordWord>,
    #[prost(uint64, tag = "2")]
    cpu: u64,
    #[prost(uint64, tag = "3")]
    spun: u64,
    #[prost(uint64, tag = "4")]
    wall: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordWord {
    #[prost(uint64, repeated, tag = "1")]
    counts: Vec<u64>,
    /// In HdrHistogram's own form, version 2.
    #[prost(bytes = "vec", repeated, tag = "2")]
    times: Vec<Vec<u8>>,
    /// 128 bits, the highest byte first.
    #[prost(bytes = "vec", tag = "3")]
    in_flight_area: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    service_sum: Vec<u8>,
}

/// A message that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl UpdateWord {
    pub(super) fn new(update: &Update) -> UpdateWord {
        let (values, frequencies) = update.response.iter().copied().unzip();
        let (worker, target) = (update.worker as u64, update.target as u64);
        let (at, counts, lag_max) = (update.at, update.counts.list(), update.lag_max);
        UpdateWord { worker, target, at, counts, values, frequencies, lag_max }
    }

    pub(super) fn read(self) -> Result<Update, Malformed> {
        Ok(Update {
            worker: usize::try_from(self.worker).map_err(|_| Malformed)?,
            target: usize::try_from(self.target).map_err(|_| Malformed)?,
            at: self.at,
            lag_max: self.lag_max,
            counts: Counts::from_list(&self.counts).ok_or(Malformed)?,
            response: self.values.into_iter().zip(self.frequencies).collect(),
        })
    }
}

impl FinishedWord {
    pub(super) fn new(finished: &Finished) -> FinishedWord {
        let Used { cpu, spun, wall } = finished.used;
        let record = |record: &Record| RecordWord {
            counts: record.counts.list(),
            times: record.times().into_iter().map(bytes).collect(),
            in_flight_area: record.in_flight_area.to_be_bytes().to_vec(),
            service_sum: record.service_sum.to_be_bytes().to_vec(),
        };
        FinishedWord { records: finished.records.iter().map(record).collect(), cpu, spun, wall }
    }

    pub(super) fn read(self) -> Result<Finished, Malformed> {
        let records = self.records.into_iter().map(RecordWord::read).collect::<Result<_, _>>()?;
        Ok(Finished { records, used: Used { cpu: self.cpu, spun: self.spun, wall: self.wall } })
    }
}

impl RecordWord {
    fn read(self) -> Result<Record, Malformed> {
        let counts = Counts::from_list(&self.counts).ok_or(Malformed)?;
        let mut record = Record { counts, ..Record::default() };
        let mut times = record.times_mut();
        if times.len() != self.times.len() {
            return Err(Malformed);
        }
        for (times, bytes) in times.iter_mut().zip(self.times) {
            let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &*bytes).map_err(|_| Malformed)?;
            times.add_histogram(&histogram);
        }
        let whole = |bytes: Vec<u8>| bytes.try_into().map(u128::from_be_bytes).map_err(|_| Malformed);
        (record.in_flight_area, record.service_sum) = (whole(self.in_flight_area)?, whole(self.service_sum)?);
        Ok(record)
    }
}

fn bytes(times: &Times) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a vector cannot fail.
    let _ = V2DeflateSerializer::new().serialize(times.histogram(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Cause;

    #[test]
    fn records_come_as_they_went() {
        let mut record = Record::default();
        record.response.record(1_234_567);
        record.classes[1].record(5);
        record.counts.fail(Cause::Echo);
        record.counts.renewals_failed = 7;
        record.in_flight_area = u128::MAX - 1;
        let finished = Finished { records: vec![record], used: Used { cpu: 1, spun: 2, wall: 3 } };
        let word = FinishedWord::new(&finished);
        let read = word.clone().read().unwrap();
        let (was, is) = (&finished.records[0], &read.records[0]);
        assert_eq!((is.counts, is.in_flight_area, read.used.wall), (was.counts, was.in_flight_area, 3));
        assert_eq!(is.response.counts().collect::<Vec<_>>(), was.response.counts().collect::<Vec<_>>());
        assert_eq!((is.classes[1].count(), is.service.count()), (1, 0));
        let damage: [fn(&mut RecordWord); 4] = [
            |record| record.counts.clear(),
            |record| record.times.truncate(3),
            |record| record.times[0] = b"none".to_vec(),
            |record| record.service_sum.clear(),
        ];
        for change in damage {
            let mut word = word.clone();
            change(&mut word.records[0]);
            assert_eq!(word.read().err(), Some(Malformed));
        }
    }
}
