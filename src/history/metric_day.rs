//! Stored form of one day of a series: all samples, and an aggregate per hour.
//!
//! Long windows read only the hourly aggregates, short ones the samples.

use serde::{Deserialize, Serialize};

use super::columns::{self, Table};
use super::window::Aggregate;
use super::{DAY, HOUR, Micros, Unreadable};

const HOURS_VERSION: u8 = 1;

/// Aggregate of one hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct HourRecord {
    hour: u8,
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

/// Stored form of one day.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Number of samples.
    pub count: usize,
    /// All samples; see [`columns`].
    pub packed: Vec<u8>,
    /// Hourly aggregates.
    pub hours: Vec<u8>,
}

/// Builds the stored form of a day from new samples (in any order; the first of equal times wins) and the stored ones.
///
/// # Errors
/// When the stored bytes are invalid; they must then not be replaced.
pub fn store(stored: Option<&[u8]>, new: impl IntoIterator<Item = (Micros, f64)>) -> Result<Stored, Unreadable> {
    let mut samples = stored.map(samples).transpose()?.unwrap_or_default();
    samples.extend(new);
    // The sort is stable, so stored samples win over new ones of the same time.
    samples.sort_by_key(|(time, _)| *time);
    samples.dedup_by_key(|(time, _)| *time);
    let mut hours: Vec<HourRecord> = Vec::new();
    for (time, value) in samples.iter().filter(|(_, value)| value.is_finite()) {
        let hour = u8::try_from(time.rem_euclid(DAY) / HOUR).unwrap_or(0);
        match hours.last_mut().filter(|last| last.hour == hour) {
            Some(last) => {
                last.count += 1;
                last.sum += value;
                last.min = last.min.min(*value);
                last.max = last.max.max(*value);
            }
            None => hours.push(HourRecord { hour, count: 1, sum: *value, min: *value, max: *value }),
        }
    }
    let mut encoded = vec![HOURS_VERSION];
    encoded.extend(postcard::to_allocvec(&hours).map_err(|_| Unreadable("cannot serialize the hours"))?);
    let (times, values) = samples.into_iter().unzip();
    let table = Table { times, columns: vec![values] };
    Ok(Stored { count: table.times.len(), packed: columns::pack(&table), hours: encoded })
}

/// Returns the samples of a stored day, oldest first.
///
/// # Errors
/// When the bytes are invalid.
pub fn samples(packed: &[u8]) -> Result<Vec<(Micros, f64)>, Unreadable> {
    let Table { times, columns } = columns::unpack(packed)?;
    let values = columns.into_iter().next().ok_or(Unreadable("missing values"))?;
    Ok(times.into_iter().zip(values).collect())
}

/// Returns the start and the aggregate of each hour of the day that starts at `day`.
///
/// # Errors
/// When the bytes are invalid.
pub fn hours(day: Micros, encoded: &[u8]) -> Result<impl Iterator<Item = (Micros, Aggregate)>, Unreadable> {
    let (version, encoded) = encoded.split_first().ok_or(Unreadable("missing hours"))?;
    if *version != HOURS_VERSION {
        return Err(Unreadable("unknown version of hours"));
    }
    let hours: Vec<HourRecord> = postcard::from_bytes(encoded).map_err(|_| Unreadable("corrupt hours"))?;
    Ok(hours.into_iter().map(move |hour| {
        let aggregate = Aggregate { count: u64::from(hour.count), sum: hour.sum, min: hour.min, max: hour.max };
        (day + Micros::from(hour.hour) * HOUR, aggregate)
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn arbitrary_samples() -> impl Strategy<Value = Vec<(Micros, f64)>> {
        proptest::collection::vec((0..DAY, -1e6..1e6_f64), 0..300)
    }

    proptest! {
        #[test]
        fn storing_in_parts_equals_storing_at_once(
            all in arbitrary_samples(), cut in any::<prop::sample::Index>(), again in any::<bool>(),
        ) {
            let unique: BTreeMap<Micros, f64> = all.iter().rev().copied().collect();
            let whole = store(None, unique.clone()).unwrap();
            let (first, second) = all.split_at(if all.is_empty() { 0 } else { cut.index(all.len()) });
            let part = store(None, first.iter().copied()).unwrap();
            let mut stored = store(Some(&part.packed), second.iter().copied()).unwrap();
            if again {
                stored = store(Some(&stored.packed), second.iter().copied()).unwrap();
            }
            prop_assert_eq!(samples(&stored.packed).unwrap(), unique.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(stored, whole);
        }

        #[test]
        fn hours_aggregate_the_samples(all in arbitrary_samples()) {
            let stored = store(None, all).unwrap();
            let mut expected: BTreeMap<Micros, Aggregate> = BTreeMap::new();
            for (time, value) in samples(&stored.packed).unwrap() {
                let hour = 7 * DAY + time - time % HOUR;
                expected.entry(hour).and_modify(|a| a.merge(&Aggregate::of(value))).or_insert(Aggregate::of(value));
            }
            let hours: BTreeMap<Micros, Aggregate> = hours(7 * DAY, &stored.hours).unwrap().collect();
            prop_assert_eq!(hours, expected);
        }
    }

    #[test]
    fn unreadable_day_is_not_replaced() {
        assert!(store(Some(&[9, 9, 9]), [(0, 1.0)]).is_err());
    }
}
