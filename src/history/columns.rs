//! Rows of numbers over time, packed into few bytes, without loss.
//!
//! ```text
//! version 1 · unit (0 µs, 1 ms, 2 s) · columns · per column: decimals, or 255 for raw
//! varint rows · times: first, difference, then differences of differences (zigzag varints)
//! per column: raw: eight bytes a value, big-endian
//!             else: value × 10^decimals: first, then differences (zigzag varints)
//! ```
//!
//! Times that come evenly are a zero each, counts that stand still too, and Postgres compresses
//! zeros away. The database's own function `monitor_unpack` reads the same bytes, so that they
//! can be read with SQL alone: migration 0003.

use super::{Micros, Unreadable};

const VERSION: u8 = 1;
const RAW: u8 = 255;
/// Beyond so many decimals a value is kept raw.
const MAX_DECIMALS: u8 = 6;
/// Whole numbers up to here are exact in a double.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// Microseconds per unit, by the unit's code.
const UNITS: [Micros; 3] = [1, 1_000, 1_000_000];

/// Rows in the order of time: every column is as long as `times`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// When each row is from.
    pub times: Vec<Micros>,
    /// The numbers, column by column.
    pub columns: Vec<Vec<f64>>,
}

/// Packs a table; [`unpack`] gives the same back, bit by bit.
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

/// Reads what [`pack`] wrote.
///
/// # Errors
/// When it was not written by this version, or is damaged.
pub fn unpack(bytes: &[u8]) -> Result<Table, Unreadable> {
    unpack_first(usize::MAX, bytes)
}

/// The same with at most so many columns, the first ones.
///
/// # Errors
/// As [`unpack`]; what comes after those columns is not looked at.
pub fn unpack_first(most: usize, bytes: &[u8]) -> Result<Table, Unreadable> {
    let mut rest = Rest(bytes);
    if rest.byte()? != VERSION {
        return Err(Unreadable("unknown version"));
    }
    let unit = *UNITS.get(usize::from(rest.byte()?)).ok_or(Unreadable("unknown unit"))?;
    let count = usize::from(rest.byte()?);
    let decimals = (0..count).map(|_| rest.byte()).collect::<Result<Vec<u8>, _>>()?;
    let rows = usize::try_from(rest.varint()?).map_err(|_| Unreadable("too long"))?;
    // Every row has at least a byte for its time: a damaged length is not believed.
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

/// The fewest decimals that keep every value bit by bit; [`RAW`] if none do.
fn decimals(column: &[f64]) -> u8 {
    (0..=MAX_DECIMALS).find(|decimals| column.iter().all(|value| survives(*value, *decimals))).unwrap_or(RAW)
}

/// Whether a value comes back as it was: minus zero does not, nor do the largest and the finest.
fn survives(value: f64, decimals: u8) -> bool {
    let scale = 10_f64.powi(i32::from(decimals));
    // Half of what is exact, so that differences are exact too.
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

/// What is left to read.
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
        fn what_was_packed_comes_back_bit_by_bit(
            rows in proptest::collection::vec((any::<i64>(), value(), value()), 0..200),
        ) {
            let table = Table {
                times: rows.iter().map(|row| row.0).collect(),
                columns: vec![rows.iter().map(|row| row.1).collect(), rows.iter().map(|row| row.2).collect()],
            };
            prop_assert_eq!(bits(&unpack(&pack(&table)).unwrap()), bits(&table));
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(unpack(&bytes));
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            drop(unpack(&bytes));
        }
    }

    #[test]
    fn minus_zero_is_not_zero() {
        let table = Table { times: vec![1, 2], columns: vec![vec![0.0, -0.0]] };
        assert_eq!(bits(&unpack(&pack(&table)).unwrap()), bits(&table));
    }

    #[test]
    fn a_day_of_a_gauge_at_even_times_takes_about_a_byte_a_sample() {
        let times: Vec<Micros> = (0..2880).map(|i| (1_795_456_260 + i * 30) * 1_000_000).collect();
        let values = (0..2880).map(|i| f64::from(i * 7919 % 13)).collect();
        let bytes = pack(&Table { times, columns: vec![values] });
        assert!(bytes.len() < 2 * 2880 + 20, "{}", bytes.len());
    }
}
