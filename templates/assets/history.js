// History page, and the pages of one stream and one worker type: defines the drawing of each chart and when to load
// data.

import { askAnew } from "./answers.js";
import { bars } from "./bars.js";
import { wordTimes } from "./clock.js";
import { bytes, niceTime, seconds, short } from "./figures.js";
import { heatmap } from "./heatmap.js";
import { lines } from "./lines.js";
import { startMarks } from "./marks.js";
import { latencies, servers } from "./small_multiples.js";
import { loadParts, startNow } from "./parts.js";
import { ChartFrame } from "./chart_frame.js";
import { drawAgain } from "./plot.js";
import { preset, range, refresh, startRange, zoomOut } from "./range.js";
import { onThemeChange, startShell } from "./shell.js";
import { Timeline } from "./timeline.js";

const { dataset } = document.getElementById("past");
/** Stream or worker type of the page, as named in series; undefined for the whole fleet. */
const of = dataset.of === "" && !document.getElementById("now") ? undefined : dataset.of;
const filter = document.getElementById("past-filter");
const words = () => (filter?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);

/** Returns the name in a series of this kind. */
const after = (kind) => (series) => (series.startsWith(`${kind}:`) ? series.slice(kind.length + 1) : null);
/** Labels the series of one stream by their kind. */
const kinds = (called) => (series) => {
  const [kind] = series.split(":", 1);
  return called[kind] !== undefined && series === `${kind}:${of.replaceAll("\0", "\ufffd")}` ? called[kind] : null;
};

const DRAWINGS = {
  queries: bars({ empty: "No queries started in this time range.", absent: "This database has no query table." }),
  fleet: lines({ name: after("workers_alive"), stepped: true, empty: "No workers recorded in this time range.", words }),
  backlog: lines({ name: after("backlog"), format: short, empty: "No data in this time range.", words }),
  heat: heatmap({ words }),
  latency: latencies({ words, only: of }),
  servers: servers(),
  depth: lines({ name: kinds({ lag: "undelivered", pending: "pending" }), format: short, empty: "No data in this time range.", of }),
  waiting: lines({ name: kinds({ oldest_waiting_sec: "oldest message age" }), format: seconds, top: (s) => niceTime(s * 1000) / 1000, empty: "No messages waited in this time range.", of }),
  consumers: lines({ name: kinds({ consumers: "consumers", xlen: "length" }), format: short, empty: "No data in this time range.", of }),
  failures: lines({ name: kinds({ failures: "failures in 5 min" }), format: short, stepped: true, empty: "No task failures in this time range.", of }),
  load: lines({ name: kinds({ backlog: "backlog", capacity: "capacity" }), format: short, empty: "No data in this time range.", of }),
  alive: lines({ name: kinds({ workers_alive: "alive" }), stepped: true, empty: "No data in this time range.", of }),
};

const charts = [];
const timeline = new Timeline(document.getElementById("p-timeline"), of);

function redraw() {
  timeline.redraw();
  for (const frame of charts) frame.redraw();
}

/** Loads everything, each part separately. */
function load({ moved }) {
  askAnew();
  const now = range();
  timeline.load(now, moved);
  for (const frame of charts) frame.load(now, moved);
}

function changed(what) {
  load(what);
  loadParts(of, what.moved);
}

function startFilter() {
  if (of !== undefined) return;
  filter.disabled = false;
  filter.value = new URL(location.href).searchParams.get("q") ?? "";
  let soon = null;
  filter.addEventListener("input", () => {
    const address = new URL(location.href);
    if (filter.value) address.searchParams.set("q", filter.value);
    else address.searchParams.delete("q");
    history.replaceState(history.state, "", address);
    clearTimeout(soon);
    soon = setTimeout(redraw, 120);
  });
}

function clear() {
  if (filter?.value) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
  }
  document.querySelector(".custom").open = false;
  document.activeElement?.blur?.();
}

addEventListener("DOMContentLoaded", () => {
  for (const section of document.querySelectorAll("[data-chart][data-asks]")) charts.push(new ChartFrame(section, DRAWINGS[section.dataset.chart]));
  const presets = Object.fromEntries([1, 2, 3, 4, 5].map((n) => [String(n), () => preset(n)]));
  startShell({ ...presets, z: zoomOut, r: refresh, "/": () => filter?.focus(), Escape: clear });
  startMarks(() => {
    timeline.redraw();
    drawAgain();
  });
  startFilter();
  onThemeChange(redraw);
  startRange(changed);
  wordTimes(document);
  load({ moved: true });
  // Parts that came with the page need no request.
  if (["summary", "incidents", "past-events"].some((id) => document.getElementById(id)?.dataset.state === "loading")) loadParts(of, false);
  if (of !== undefined) startNow();
});
