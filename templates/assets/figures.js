// Number formatting, consistent with the server; and axis limits.

import { duration } from "./clock.js";

const GAP = "\u202f";
export const MISSING = "—";

function scaled(n, units) {
  const power = n < 999.5 ? 0 : n < 999.5e3 ? 1 : n < 999.5e6 ? 2 : n < 999.5e9 ? 3 : 4;
  const value = n / 1000 ** power;
  const text = power === 0 ? String(Math.round(n * 10) / 10) : value < 99.95 ? value.toFixed(1) : value.toFixed(0);
  return units[power] ? `${text}${GAP}${units[power]}` : text;
}

/** Formats a count: `37`, `1.2 k`. */
export const short = (n) => scaled(n, ["", "k", "M", "G", "T"]);

/** Formats a size: `1.4 GB`. */
export const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"]);

/** Formats a duration in milliseconds: `340 ms`, `1.2 s`, `3 m 20 s`. */
export function took(ms) {
  if (ms < 10) return `${Math.round(ms * 10) / 10}${GAP}ms`;
  if (ms < 999.5) return `${Math.round(ms)}${GAP}ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)}${GAP}s`;
  if (ms < 60_000) return `${Math.round(ms / 1000)}${GAP}s`;
  return duration(ms / 1000).replace(/\u202fm 00\u202fs$/, `${GAP}m`).replace(/\u202fh 00\u202fm$/, `${GAP}h`);
}

/** Formats a duration in seconds. */
export const seconds = (s) => took(s * 1000);

/** Formats a fraction: `74 %`. */
export function percent(share) {
  const n = Math.round(share * 100);
  if (n > 999) return `>999${GAP}%`;
  return share > 0 && n < 1 ? `<1${GAP}%` : `${n}${GAP}%`;
}

/** Returns a round number of at least `peak` that divides into four round parts; also below one. */
export function niceTop(peak, unit = 1) {
  for (; ; unit *= 10) for (const step of [4, 8, 12, 20, 40]) if (step * unit >= peak) return step * unit;
}

/** The same for milliseconds: above a minute, the parts are whole minutes and hours. */
export function niceTime(ms) {
  for (const step of [4, 8, 20, 40, 80, 200, 400, 800, 2000, 4000, 8000, 20_000, 40_000, 80_000, 120_000, 240_000, 480_000, 1_200_000, 2_400_000, 4_800_000, 7_200_000, 14_400_000, 28_800_000, 86_400_000]) if (step >= ms) return step;
  return niceTop(ms, 86_400_000);
}
