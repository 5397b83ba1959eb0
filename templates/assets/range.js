// Time range of the page: presets, custom edges, zoom in and out, and following the current time. It is part of the
// URL, so that it can be shared.

import { clock, duration, heard, serverNow } from "./clock.js";

const UNITS = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 };
const SHORTEST = 60;
const LONGEST = 400 * 86_400;

const { dataset } = document.getElementById("past");
const form = document.getElementById("range");
const [fromInput, toInput] = [form.elements.from, form.elements.to];
const out = document.getElementById("out");
const fresh = document.getElementById("fresh");
const wrong = form.querySelector(".wrong");

/** Edges as in the URL. */
let [from, to] = [dataset.from, dataset.to];
/** The time that `now` refers to. */
let now = Number(dataset.now);
let changed = () => {};
let timer = null;

/** Returns an edge in Unix seconds; null if it is invalid. */
function resolve(edge) {
  if (edge === "now") return now;
  const before = /^now-(\d+)([smhdw])$/.exec(edge);
  if (before) return now - Number(before[1]) * UNITS[before[2]];
  if (/^\d+(\.\d+)?$/.test(edge)) return Number(edge) >= 1e11 ? Number(edge) / 1000 : Number(edge);
  const unix = Date.parse(edge.trim().replace(" ", "T")) / 1000;
  return Number.isFinite(unix) ? unix : null;
}

const iso = (unix) => new Date(Math.round(unix) * 1000).toISOString().replace(".000", "");
const written = (edge) => (edge.startsWith("now") ? edge : iso(resolve(edge)));

/** Displayed range: `since` and `until` in Unix seconds. */
export const range = () => ({ since: Math.floor(resolve(from)), until: Math.ceil(resolve(to)), moves: to === "now" });

/** Query string of the range. */
export const query = () => `from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`;

function show(nextFrom, nextTo) {
  [from, to] = [nextFrom, nextTo];
  now = serverNow();
  word();
  arm();
  changed({ moved: true });
}

/** Changes the range; `ways` are the previous ranges for zooming out. */
function go(nextFrom, nextTo, ways = []) {
  const address = new URL(location.href);
  address.searchParams.set("from", nextFrom);
  address.searchParams.set("to", nextTo);
  history.pushState({ ways }, "", address.href.replaceAll("%3A", ":"));
  show(nextFrom, nextTo);
}

/** Zooms into a part of the range. */
export function zoomTo(since, until) {
  if (until - since < SHORTEST) {
    const middle = (since + until) / 2;
    [since, until] = [middle - SHORTEST / 2, middle + SHORTEST / 2];
  }
  const ways = [...(history.state?.ways ?? []), [from, to]].slice(-30);
  go(iso(since), iso(until), ways);
}

/** Returns to the range before zooming in, or doubles it. */
export function zoomOut() {
  const ways = [...(history.state?.ways ?? [])];
  const before = ways.pop();
  if (before) {
    go(before[0], before[1], ways);
    return;
  }
  const { since, until } = range();
  const length = Math.min(2 * (until - since), LONGEST);
  now = serverNow();
  const end = Math.min(now, (since + until + length) / 2);
  if (to === "now" || end >= now - 1) go(`now-${Math.round(length / 60)}m`, "now");
  else go(iso(end - length), iso(end));
}

export function preset(n) {
  const link = form.querySelectorAll(".presets a")[n - 1];
  if (link) go(link.dataset.from, "now");
}

/** Reloads everything. */
export function refresh() {
  now = serverNow();
  word();
  arm();
  changed({ moved: false });
}

function word() {
  const { since, until } = range();
  for (const link of form.querySelectorAll(".presets a")) {
    if (link.dataset.from === from && to === "now") link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  [...form.querySelectorAll(".shown time")].forEach((time, i) => {
    time.dateTime = time.title = iso(i ? until : since);
    time.textContent = clock(i ? until : since).replace(/:\d\d$/, "");
  });
  const local = (edge) => (edge.startsWith("now") ? edge : new Date(resolve(edge) * 1000 - new Date().getTimezoneOffset() * 60_000).toISOString().slice(0, 19).replace("T", " "));
  if (document.activeElement !== fromInput && document.activeElement !== toInput) [fromInput.value, toInput.value] = [local(from), local(to)];
  for (const words of document.querySelectorAll(".range-words")) words.textContent = duration(until - since);
  fresh.textContent = to === "now" ? `as of ${clock(now)}, refreshes every ${pause() / 1000}\u202fs` : "";
  document.getElementById("instead").hidden = true;
}

/** Refresh interval of a range that ends now, milliseconds. */
function pause() {
  const { since, until } = range();
  return until - since <= 6 * 3600 ? 30_000 : 60_000;
}

function arm() {
  clearTimeout(timer);
  if (to === "now") timer = setTimeout(() => (document.hidden ? null : refresh()), pause());
}

/** Starts the range bar; `then({ moved })` is called whenever data must be loaded. */
export function startRange(then) {
  heard(now);
  const instead = !document.getElementById("instead").hidden;
  word();
  document.getElementById("instead").hidden = !instead;
  changed = then;
  out.disabled = false;
  out.addEventListener("click", zoomOut);
  form.querySelector(".presets").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.dataset.from, "now");
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    now = serverNow();
    const [since, until] = [fromInput.value, toInput.value].map(resolve);
    const words = since === null ? "Invalid start time." : until === null ? "Invalid end time." : until - since < 10 ? "The start time must be before the end time." : until - since > LONGEST ? "The time range is longer than 400 days." : "";
    wrong.hidden = !words;
    wrong.textContent = words;
    if (words) return;
    form.querySelector("details").open = false;
    go(written(fromInput.value.trim()), written(toInput.value.trim()));
  });
  addEventListener("popstate", () => {
    const asked = new URL(location.href).searchParams;
    show(asked.get("from") ?? "now-24h", asked.get("to") ?? "now");
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && to === "now" && serverNow() - now > pause() / 1000) refresh();
  });
  addEventListener("click", (event) => {
    const details = form.querySelector("details");
    if (details.open && !details.contains(event.target)) details.open = false;
  });
  arm();
}
