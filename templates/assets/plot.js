// A chart: the range as its width, a cursor shared by all charts, drag to zoom, event marks, and values at the time
// under the pointer.

import { clock } from "./clock.js";
import { niceTop, short } from "./figures.js";
import { drawMarks } from "./marks.js";
import { colour } from "./palette.js";
import { zoomOut, zoomTo } from "./range.js";

const GUTTER = 50;
const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
/** Charts share the cursor position, not mouse buttons. */
const SHARED = (type) => type !== "mousedown" && type !== "mouseup" && type !== "dblclick";

const plots = new Set();

/** Redraws the marks of all charts. */
export function drawAgain() {
  for (const plot of plots) plot.redraw(false);
}

const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const plot = target.plot;
    if (plot && target.clientWidth > 0 && (plot.width !== target.clientWidth || plot.height !== target.clientHeight)) plot.setSize({ width: target.clientWidth, height: target.clientHeight });
  }
});

/**
 * Draws into `host`, replacing its content.
 * - `data`, `series`, `bands`: as in uPlot, without the first series
 * - `range`: `{ since, until }`
 * - `format`, `top`: format of values, and end of the axis for a peak
 * - `told(at)`: receives the column under the pointer, null when there is none; `moment` in seconds
 * - `of`: subject of the marks; undefined: all; null: none
 */
export function plot(host, { data, series, bands, range, format = short, top = niceTop, told, of, paint, ticks = 4, quietAxis = false }) {
  erase(host);
  const muted = colour("--muted");
  const axis = { stroke: muted, font: "11px system-ui, sans-serif", ticks: { show: false }, border: { show: false } };
  const days = range.until - range.since > 2.5 * 86_400;
  const label = (unix) => {
    const at = new Date(unix * 1000);
    return days || (at.getHours() === 0 && at.getMinutes() === 0) ? day.format(at) : time.format(at);
  };
  const options = {
    width: host.clientWidth,
    height: host.clientHeight,
    padding: [8, 8, 0, 0],
    legend: { show: false },
    focus: { alpha: 1 },
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false, dist: 5 },
      points: { size: 6 },
      sync: { key: "past", setSeries: false, scales: ["x", null], filters: { pub: SHARED } },
    },
    scales: {
      x: { time: true, range: () => [range.since, range.until] },
      y: { range: (_, __, peak) => [0, top(peak ?? 0)] },
    },
    axes: [
      { ...axis, size: 20, gap: 4, grid: { show: false }, space: 76, values: (_, at) => at.map(label) },
      { ...axis, show: !quietAxis, size: GUTTER, gap: 4, grid: { stroke: colour("--line"), width: 1 }, values: (_, at) => at.map(format), splits: (u) => Array.from({ length: ticks + 1 }, (_, i) => (u.scales.y.max / ticks) * i) },
    ],
    series: [{}, ...series],
    bands,
    hooks: {
      setCursor: [(u) => told?.(u.cursor.idx ?? null, u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null, u)],
      setSelect: [
        (u) => {
          const { left, width } = u.select;
          if (width < 5) return;
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          zoomTo(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
        },
      ],
      drawClear: paint ? [paint] : [],
      draw: of === null ? [] : [(u) => drawMarks(u, of)],
    },
  };
  if (quietAxis) options.padding[3] = GUTTER;
  const made = new globalThis.uPlot(options, data, host);
  made.over.addEventListener("dblclick", zoomOut);
  host.plot = made;
  plots.add(made);
  observer.observe(host);
  return made;
}

/** Removes a chart. */
export function erase(host) {
  if (!host.plot) return;
  plots.delete(host.plot);
  host.plot.destroy();
  host.plot = null;
}

/** Formats the time under the pointer. */
export const moment = (unix, range) => (range.until - range.since > 6 * 3600 ? clock(unix).replace(/:\d\d$/, "") : clock(unix));
