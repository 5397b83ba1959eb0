//! Lossless compact encoding of time series tables.
//!
//! ```text
//! version 1 · unit (0 µs, 1 ms, 2 s) · columns · per column: decimals, or 255 for raw
//! varint rows · times: first, difference, then differences of differences (zigzag varints)
//! per column: raw: eight bytes a value, big-endian
//!             else: value × 10^decimals: first, then differences (zigzag varints)
//! ```
//!
//! Evenly spaced times and constant values encode as zeros, which Postgres compresses away. The SQL function
//! `monitor_unpack` (migration 0003) decodes the same format, so the data is readable with SQL alone.

use super::{Micros, Unreadable};

const VERSION: u8 = 1;
const RAW: u8 = 255;
/// Maximum number of decimals; values with more are stored raw.
const MAX_DECIMALS: u8 = 6;
/// Largest integer up to which all integers are exact in a double.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// Microseconds per unit, by unit code.
const UNITS: [Micros; 3] = [1, 1_000, 1_000_000];

/// Rows ordered by time; every column has the length of `times`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Time of each row.
    pub times: Vec<Micros>,
    /// Values, by column.
    pub columns: Vec<Vec<f64>>,
}

/// Encodes a table; [`unpack`] restores it bit for bit.
#[must_use]
pub fn pack(table: &Table) -> Vec<u8> {
    let unit = (0..UNITS.len()).rev().find(|code| {
        let unit = UNITS.get(*code).copied().unwrap_or(1);
        table.times.iter().all(|t| t % unit == 0)
    });
    let unit_code = unit.unwrap_or(0);
    let unit = UNITS.get(unit_code).copied().unwrap_or(1);
    let decimals: Vec<u8> = table.columns.iter().map(|column| decimals(column)).collect();
    let mut bytes = Vec::with_capacity(16 + table.times.len() * (1 + 2 * table.columns.len()));
    bytes.extend([VERSION, unit_code as u8, table.columns.len() as u8]);
    bytes.extend(&decimals);
    put_varint(&mut bytes, table.times.len() as u64);
    let (mut last, mut step) = (0, 0);
    for time in &table.times {
        let time = time / unit;
        let difference = time.wrapping_sub(last);
        put_varint(&mut bytes, zigzag(difference.wrapping_sub(step)));
        (last, step) = (time, difference);
    }
    for (column, decimals) in table.columns.iter().zip(decimals) {
        if decimals == RAW {
            bytes.extend(column.iter().flat_map(|value| value.to_bits().to_be_bytes()));
            continue;
        }
        let mut last = 0;
        for value in column {
            let scaled = scaled(*value, decimals);
            put_varint(&mut bytes, zigzag(scaled - last));
            last = scaled;
        }
    }
    bytes
}

/// Decodes the output of [`pack`].
///
/// # Errors
/// When the version is unknown or the bytes are damaged.
pub fn unpack(bytes: &[u8]) -> Result<Table, Unreadable> {
    unpack_first(usize::MAX, bytes)
}

/// Decodes only the first `most` columns.
///
/// # Errors
/// As [`unpack`]; later columns are not checked.
pub fn unpack_first(most: usize, bytes: &[u8]) -> Result<Table, Unreadable> {
    let mut rest = Rest(bytes);
    if rest.byte()? != VERSION {
        return Err(Unreadable("unknown version"));
    }
    let unit = *UNITS.get(usize::from(rest.byte()?)).ok_or(Unreadable("unknown unit"))?;
    let count = usize::from(rest.byte()?);
    let decimals = (0..count).map(|_| rest.byte()).collect::<Result<Vec<u8>, _>>()?;
    let rows = usize::try_from(rest.varint()?).map_err(|_| Unreadable("too long"))?;
    // Each row takes at least one byte for its time, so a larger count means damaged bytes.
    if rows > rest.0.len() {
        return Err(Unreadable("truncated"));
    }
    let mut times = Vec::with_capacity(rows);
    let (mut last, mut step) = (0_i64, 0_i64);
    for _ in 0..rows {
        step = step.wrapping_add(unzigzag(rest.varint()?));
        last = last.wrapping_add(step);
        times.push(last.wrapping_mul(unit));
    }
    let mut columns = Vec::with_capacity(count.min(most));
    for decimals in decimals.into_iter().take(most) {
        let mut column = Vec::with_capacity(rows);
        if decimals == RAW {
            for _ in 0..rows {
                column.push(f64::from_bits(u64::from_be_bytes(rest.eight()?)));
            }
        } else {
            let scale = 10_f64.powi(i32::from(decimals));
            let mut last = 0_i64;
            for _ in 0..rows {
                last = last.wrapping_add(unzigzag(rest.varint()?));
                #[expect(clippy::cast_precision_loss, reason = "pack keeps within what a double holds exactly")]
                column.push(last as f64 / scale);
            }
        }
        columns.push(column);
    }
    Ok(Table { times, columns })
}

/// Returns the smallest number of decimals that restores every value bit for bit, or [`RAW`].
fn decimals(column: &[f64]) -> u8 {
    (0..=MAX_DECIMALS).find(|decimals| column.iter().all(|value| survives(*value, *decimals))).unwrap_or(RAW)
}

/// Whether a value round-trips; minus zero and very large or very fine values do not.
fn survives(value: f64, decimals: u8) -> bool {
    let scale = 10_f64.powi(i32::from(decimals));
    // Half of the exact range, so that differences are exact too.
    #[expect(clippy::cast_precision_loss, reason = "seen to be within what a double holds exactly")]
    let back =
        (value * scale).abs() < EXACT / 2.0 && (scaled(value, decimals) as f64 / scale).to_bits() == value.to_bits();
    back
}

#[expect(clippy::cast_possible_truncation, reason = "`survives` has seen it")]
fn scaled(value: f64, decimals: u8) -> i64 {
    (value * 10_f64.powi(i32::from(decimals))).round() as i64
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)).cast_unsigned()
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -((n & 1).cast_signed())
}

fn put_varint(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

/// Remaining input.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> Result<u8, Unreadable> {
        let (byte, rest) = self.0.split_first().ok_or(Unreadable("truncated"))?;
        self.0 = rest;
        Ok(*byte)
    }

    fn eight(&mut self) -> Result<[u8; 8], Unreadable> {
        let (eight, rest) = self.0.split_first_chunk().ok_or(Unreadable("truncated"))?;
        self.0 = rest;
        Ok(*eight)
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut n = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Unreadable("invalid number encoding"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            (0..100_000_i64).prop_map(|n| n as f64),
            (0..1_000_000_i64).prop_map(|n| n as f64 / 100.0),
            any::<f64>(),
        ]
    }

    fn bits(table: &Table) -> (Vec<Micros>, Vec<Vec<u64>>) {
        let columns = table.columns.iter().map(|column| column.iter().map(|v| v.to_bits()).collect());
        (table.times.clone(), columns.collect())
    }

    proptest! {
        #[test]
        fn pack_and_unpack_round_trip(
            rows in proptest::collection::vec((any::<i64>(), value(), value()), 0..200),
        ) {
            let table = Table {
                times: rows.iter().map(|row| row.0).collect(),
                columns: vec![rows.iter().map(|row| row.1).collect(), rows.iter().map(|row| row.2).collect()],
            };
            prop_assert_eq!(bits(&unpack(&pack(&table)).unwrap()), bits(&table));
        }

        #[test]
        fn damaged_bytes_are_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(unpack(&bytes));
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            drop(unpack(&bytes));
        }
    }

    #[test]
    fn minus_zero_round_trips() {
        let table = Table { times: vec![1, 2], columns: vec![vec![0.0, -0.0]] };
        assert_eq!(bits(&unpack(&pack(&table)).unwrap()), bits(&table));
    }

    #[test]
    fn evenly_sampled_gauge_takes_about_one_byte_per_sample() {
        let times: Vec<Micros> = (0..2880).map(|i| (1_795_456_260 + i * 30) * 1_000_000).collect();
        let values = (0..2880).map(|i| f64::from(i * 7919 % 13)).collect();
        let bytes = pack(&Table { times, columns: vec![values] });
        assert!(bytes.len() < 2 * 2880 + 20, "{}", bytes.len());
    }
}
