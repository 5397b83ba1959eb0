//! Small charts of an alert's series: block characters for text, a PNG for mail.

use std::collections::BTreeMap;

use crate::alerting::rule::figure;

/// Charts by alert key. Alerts whose data did not arrive in time have none.
pub type Sketches = BTreeMap<String, Sketch>;

/// Time span of a chart, seconds.
pub const REACHES: f64 = 3600.0;
/// Number of block characters.
const BLOCKS: usize = 24;
/// Columns of the picture, their width, and the height, in pixels. Displayed at half the size.
const COLUMNS: usize = 120;
const COLUMN: usize = 4;
const HEIGHT: usize = 96;
/// Palette of the picture: background, bar, limit.
const PALETTE: [u8; 9] = [0xff, 0xff, 0xff, 0x6b, 0x95, 0xc9, 0xbd, 0x22, 0x26];

/// The last hour of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    /// Samples: Unix seconds and value, oldest first.
    pub samples: Vec<(f64, f64)>,
    /// End of the time span, Unix seconds.
    pub until: f64,
    /// Threshold of the alert.
    pub limit: Option<f64>,
    /// Unit, appended to values.
    pub unit: String,
}

impl Sketch {
    /// `▁▁▂▅█ max 2341 in the last hour, limit 500`; `None` without samples.
    #[must_use]
    pub fn blocks(&self) -> Option<String> {
        let highest = self.highest()?;
        let block = |value: Option<f64>| match value {
            None => ' ',
            Some(value) if highest > 0.0 => match value / highest {
                share if share <= 0.125 => '▁',
                share if share <= 0.25 => '▂',
                share if share <= 0.375 => '▃',
                share if share <= 0.5 => '▄',
                share if share <= 0.625 => '▅',
                share if share <= 0.75 => '▆',
                share if share <= 0.875 => '▇',
                _ => '█',
            },
            Some(_) => '▁',
        };
        let drawn: String = self.columns(BLOCKS).into_iter().map(block).collect();
        Some(format!("{} {}", drawn.trim_start(), self.said()?))
    }

    /// `max 2341 in the last hour, limit 500`; `None` without samples.
    #[must_use]
    pub fn said(&self) -> Option<String> {
        let unit = &self.unit;
        let limit = self.limit.map(|limit| format!(", limit {}{unit}", figure(limit))).unwrap_or_default();
        self.highest().map(|highest| format!("max {}{unit} in the last hour{limit}", figure(highest)))
    }

    /// PNG with bars and a line at the limit; `None` without samples.
    #[must_use]
    pub fn picture(&self) -> Option<Vec<u8>> {
        let top = self.highest()?.max(self.limit.unwrap_or(0.0));
        let (width, columns) = (COLUMNS * COLUMN, self.columns(COLUMNS));
        // Pixels from the top. Values above zero get at least one pixel.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        #[expect(clippy::cast_precision_loss, reason = "a hundred pixels")]
        let down = |value: f64| {
            let share = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
            let high = (share * HEIGHT as f64).round() as usize;
            HEIGHT - if value > 0.0 { high.max(2) } else { high }
        };
        let limit = self.limit.map(|limit| down(limit).min(HEIGHT - 2));
        let mut pixels = Vec::with_capacity(width * HEIGHT);
        for y in 0..HEIGHT {
            let on_limit = limit.is_some_and(|limit| y == limit || y == limit + 1);
            for value in &columns {
                let bar = value.is_some_and(|value| y >= down(value));
                // One blank pixel separates the bars.
                for x in 0..COLUMN {
                    pixels.push(if on_limit { 2 } else { u8::from(bar && x + 1 < COLUMN) });
                }
            }
        }
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, u32::try_from(width).ok()?, u32::try_from(HEIGHT).ok()?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(PALETTE.as_slice());
        encoder.write_header().ok()?.write_image_data(&pixels).ok()?;
        Some(file)
    }

    fn shown(&self) -> impl Iterator<Item = (f64, f64)> {
        let from = self.until - REACHES;
        self.samples.iter().copied().filter(move |(at, value)| *at >= from && value.is_finite())
    }

    fn highest(&self) -> Option<f64> {
        self.shown().map(|(_, value)| value).reduce(f64::max)
    }

    /// Maximum of each of `n` equal intervals; `None` for intervals without samples.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    #[expect(clippy::cast_precision_loss, reason = "a hundred columns")]
    fn columns(&self, n: usize) -> Vec<Option<f64>> {
        let mut columns = vec![None; n];
        for (at, value) in self.shown() {
            let place = (at - (self.until - REACHES)) / REACHES * n as f64;
            if let Some(column) = columns.get_mut((place.max(0.0) as usize).min(n - 1)) {
                *column = Some(column.map_or(value, |known: f64| known.max(value)));
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(samples: Vec<(f64, f64)>) -> Sketch {
        Sketch { samples, until: 3600.0, limit: Some(500.0), unit: String::new() }
    }

    #[test]
    fn blocks_show_the_maximum_of_each_interval_and_gaps() {
        let half_an_hour = sketch((0..60).map(|n| (1800.0 + 30.0 * f64::from(n), f64::from(n) * 10.0)).collect());
        assert_eq!(half_an_hour.blocks().unwrap(), "▁▂▂▃▄▄▅▆▆▇██ max 590 in the last hour, limit 500");
        let mut spike: Vec<(f64, f64)> = (0..120).map(|n| (30.0 * f64::from(n), 0.0)).collect();
        spike[60].1 = 9.0;
        spike.drain(70..90);
        assert_eq!(spike.len(), 100);
        assert!(sketch(spike).blocks().unwrap().starts_with("▁▁▁▁▁▁▁▁▁▁▁▁█▁    ▁▁▁▁▁▁ max 9 "));
        assert_eq!(
            sketch(vec![(0.0, 0.0), (1.0, f64::NAN)]).blocks().unwrap(),
            "▁                        max 0 in the last hour, limit 500"
        );
        assert_eq!(sketch(Vec::new()).blocks(), None);
        assert_eq!(sketch(vec![(-1.0, 5.0)]).blocks(), None, "too old");
    }

    #[test]
    fn the_picture_has_bars_and_a_limit_line() {
        let samples = (0..60).map(|n| (1800.0 + 30.0 * f64::from(n), 1000.0)).collect();
        let file = sketch(samples).picture().unwrap();
        assert!(file.len() < 2000, "{} bytes", file.len());
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (480, 96));
        let at = |x: usize, y: usize| pixels[y * 480 + x];
        assert_eq!([at(10, 90), at(10, 47), at(10, 48)], [0, 0, 2], "nothing was recorded in the first half");
        assert_eq!([at(400, 0), at(400, 90), at(403, 90), at(400, 48)], [1, 1, 0, 2]);
        assert_eq!(sketch(Vec::new()).picture(), None);
    }
}
