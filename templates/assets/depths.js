// Backlog over time: data by stream, sparklines, and the chart with its legend.

import { clock } from "./clock.js";
import { niceTop, short } from "./figures.js";
import { colour, look, swatch } from "./palette.js";
import { kept, onThemeChange } from "./shell.js";

/** Same limit as on the server. */
const COLUMNS = 200;
const SERIES = 12;
const SPARK_SCALE = 10;

const figure = document.getElementById("chart");
const plot = figure.querySelector(".plot");
const legend = figure.querySelector(".legend");
const quiet = figure.querySelector(".chart-empty");
const rest = figure.querySelector(".aside");

let times = [];
/** Depths by stream key, one per time; null is a gap. */
let depths = new Map();
/** Drawn streams, with the palette index that each keeps while it is drawn. */
let drawn = new Map();
const off = new Set(JSON.parse(kept.get("off") ?? "[]"));
let chart = null;

/** Adds columns: one value per column, one for all, or none if unchanged. */
export function takeColumns({ t, v, whole }) {
  if (whole) {
    times = [];
    depths = new Map();
  }
  const news = Array.isArray(t) ? t : [t];
  const before = times.length;
  times = times.concat(news);
  for (const key of Object.keys(v)) if (!depths.has(key)) depths.set(key, new Array(before).fill(null));
  for (const [key, values] of depths) {
    const given = v[key];
    const still = given === undefined ? (values.at(-1) ?? null) : given;
    values.push(...(Array.isArray(still) ? still : new Array(news.length).fill(still)));
  }
  const surplus = times.length - COLUMNS;
  if (surplus > 0) {
    times.splice(0, surplus);
    for (const values of depths.values()) values.splice(0, surplus);
  }
  for (const [key, values] of depths) if (values.every((depth) => depth === null)) depths.delete(key);
}

/** Redraws everything. */
export function draw() {
  for (const spark of document.querySelectorAll(".spark")) {
    const values = depths.get(spark.closest("[data-key]").dataset.key);
    spark.firstElementChild.setAttribute("d", values ? sparkline(values) : "");
  }
  choose();
  if (globalThis.uPlot) drawChart();
}

function sparkline(values) {
  const top = values.reduce((top, depth) => Math.max(top, depth ?? 0), SPARK_SCALE);
  let d = "";
  let level = null;
  let until = null;
  values.forEach((depth, i) => {
    const x = COLUMNS - values.length + i;
    const y = depth === null ? null : 23 - Math.floor((depth * 22) / top);
    if (y !== null && y === level) {
      until = x;
      return;
    }
    if (until !== null) d += `H${until}`;
    until = null;
    if (y !== null) d += level === null ? `M${x} ${y}h.1` : `L${x} ${y}`;
    level = y;
  });
  return until === null ? d : `${d}H${until}`;
}

/**
 * Selects the busiest streams. A drawn stream stays until it has been idle for the whole chart or is far from
 * the busiest.
 */
function choose() {
  const peaks = [];
  for (const [key, values] of depths) {
    const peak = Math.max(...values.map((depth) => depth ?? 0));
    if (peak > 0) peaks.push([key, peak * (drawn.has(key) ? 1.5 : 1)]);
  }
  peaks.sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
  const chosen = new Set(peaks.slice(0, SERIES).map(([key]) => key));
  const more = peaks.length - chosen.size;
  rest.hidden = more === 0;
  rest.textContent = `and ${more} more in the table`;
  quiet.hidden = chosen.size > 0;
  if (times.length > 0) quiet.textContent = "All queues are empty.";
  if (chosen.size === drawn.size && [...chosen].every((key) => drawn.has(key))) return;
  const next = new Map();
  const taken = new Set();
  const names = [...chosen].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
  for (const key of names) {
    if (!drawn.has(key)) continue;
    next.set(key, drawn.get(key));
    taken.add(drawn.get(key));
  }
  for (const key of names) {
    if (next.has(key)) continue;
    let place = 0;
    while (taken.has(place)) place += 1;
    next.set(key, place);
    taken.add(place);
  }
  drawn = new Map(names.map((key) => [key, next.get(key)]));
  chart?.destroy();
  chart = null;
  drawLegend();
}

const nameOf = (key) => document.getElementById(`q-${key}`)?.dataset.name ?? key;

function drawLegend() {
  const items = [...drawn].map(([key, place]) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-pressed", String(!off.has(key)));
    button.innerHTML = `${swatch(place)}<span></span><b class="num"></b>`;
    button.querySelector("span").textContent = nameOf(key);
    item.append(button);
    return item;
  });
  const moment = document.createElement("li");
  moment.className = "moment num";
  moment.textContent = "now";
  legend.replaceChildren(...items, moment);
}

function toggle(key) {
  if (!off.delete(key)) off.add(key);
  kept.set("off", JSON.stringify([...off]));
  const place = [...drawn.keys()].indexOf(key);
  chart?.setSeries(place + 1, { show: !off.has(key) });
  legend.querySelector(`[data-key="${CSS.escape(key)}"]`).setAttribute("aria-pressed", String(!off.has(key)));
}

/** Shows the values at the column under the pointer, otherwise the newest. */
function tellValues() {
  const at = chart?.cursor.idx ?? null;
  const column = at ?? times.length - 1;
  for (const button of legend.querySelectorAll("button")) {
    const depth = depths.get(button.dataset.key)?.[column] ?? null;
    button.lastElementChild.textContent = depth === null ? "—" : short(depth);
  }
  legend.querySelector(".moment").textContent = at === null ? "now" : `at ${clock(times[column])}`;
}

function drawChart() {
  const data = [times, ...[...drawn.keys()].map((key) => depths.get(key))];
  if (chart) chart.setData(data);
  else if (drawn.size > 0) chart = make(data);
  tellValues();
}

function make(data) {
  const line = colour("--line");
  const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false }, border: { show: false } };
  const minutes = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const series = [...drawn].map(([key, place]) => ({
    show: !off.has(key),
    ...look(place),
    width: 1.6,
    spanGaps: false,
    points: { show: false },
  }));
  plot.replaceChildren();
  plot.classList.add("drawn");
  const options = {
    width: plot.clientWidth,
    height: plot.clientHeight,
    padding: [8, 6, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: {
      x: { time: true, range: (_, first, last) => [Math.min(first, last - 60), last] },
      y: { range: (_, __, top) => [0, niceTop(top ?? 0)] },
    },
    axes: [
      { ...axis, size: 20, gap: 4, grid: { show: false }, space: 70, values: (_, at) => at.map((t) => minutes.format(t * 1000)), incrs: [60, 120, 300, 600, 1800, 3600] },
      { ...axis, size: plot.clientWidth < 500 ? 36 : 44, gap: 4, grid: { stroke: line, width: 1 }, values: (_, at) => at.map(short), splits: (u) => [0, 1, 2, 3, 4].map((i) => (u.scales.y.max / 4) * i) },
    ],
    series: [{}, ...series],
    hooks: { setCursor: [tellValues] },
  };
  return new globalThis.uPlot(options, data, plot);
}

export function startDepths() {
  takeColumns(JSON.parse(figure.dataset.history));
  figure.removeAttribute("data-history");
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) toggle(button.dataset.key);
  });
  onThemeChange(() => {
    chart?.destroy();
    chart = null;
    draw();
  });
  new ResizeObserver(() => {
    if (chart && plot.clientWidth > 0) chart.setSize({ width: plot.clientWidth, height: plot.clientHeight });
  }).observe(plot);
  draw();
}
