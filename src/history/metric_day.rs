//! One series over one day, as it is stored: all samples, and what they come to per hour.
//!
//! Long windows are answered from the hours alone, short ones from the samples.

use serde::{Deserialize, Serialize};

use super::columns::{self, Table};
use super::window::Aggregate;
use super::{DAY, HOUR, Micros, Unreadable};

const HOURS_VERSION: u8 = 1;

/// What an hour's samples come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct HourRecord {
    hour: u8,
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

/// A stored day.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// How many samples it holds.
    pub count: usize,
    /// All of them: see [`columns`].
    pub packed: Vec<u8>,
    /// What they come to per hour.
    pub hours: Vec<u8>,
}

/// Makes a day of samples (any order; of those with the same time the first counts), beside those
/// that are stored already.
///
/// # Errors
/// When what is stored cannot be read: it must then not be replaced.
pub fn store(stored: Option<&[u8]>, new: impl IntoIterator<Item = (Micros, f64)>) -> Result<Stored, Unreadable> {
    let mut samples = stored.map(samples).transpose()?.unwrap_or_default();
    samples.extend(new);
    // Stable: what was stored first stays.
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

/// The samples of a stored day, oldest first.
///
/// # Errors
/// When it cannot be read.
pub fn samples(packed: &[u8]) -> Result<Vec<(Micros, f64)>, Unreadable> {
    let Table { times, columns } = columns::unpack(packed)?;
    let values = columns.into_iter().next().ok_or(Unreadable("missing values"))?;
    Ok(times.into_iter().zip(values).collect())
}

/// What each hour of the day that begins at `day` comes to: when the hour begins, and its samples.
///
/// # Errors
/// When it cannot be read.
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
        fn a_day_stored_in_parts_and_any_order_is_the_day_stored_at_once(
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
        fn its_hours_are_those_of_its_samples(all in arbitrary_samples()) {
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
    fn a_day_that_cannot_be_read_is_not_replaced() {
        assert!(store(Some(&[9, 9, 9]), [(0, 1.0)]).is_err());
    }
}
