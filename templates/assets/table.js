// Queue table: sorting and paging, and the filter for workers and queues.

import { kept } from "./shell.js";

/** Number of rows above which the table starts with the longest queues and shows only this many. */
const MANY = 60;
const PAGE = 50;
/** Number of worker lines on a phone, and of events, before the "more" button. */
const LINES = 24;
const EVENTS = 15;

const table = document.getElementById("queue-rows");
const input = document.getElementById("filter");
const more = document.getElementById("queues-all");
const moreCards = document.getElementById("workers-all");
const narrow = matchMedia("(max-width: 640px)");
const feed = document.getElementById("feed");
const feedMore = document.getElementById("feed-all");

let sort = kept.get("sort");
let all = false;
let allCards = false;
let stirred = false;
/** Row IDs in the server's order: by name. */
let order = [];

const rows = () => [...table.tBodies];

function value(row, slot) {
  const cell = row.querySelector(`[data-c="${slot}"]`);
  const n = Number.parseFloat(cell?.dataset.v ?? cell?.textContent);
  return Number.isNaN(n) ? null : n;
}

/** Sorts the rows; rows without a value come last in both directions. */
function arrange() {
  const chosen = sort ?? (table.tBodies.length > MANY ? "-u" : "name");
  const descending = chosen.startsWith("-");
  const slot = chosen.replace("-", "");
  for (const th of table.tHead.rows[0].cells) {
    if (th.dataset.sort === slot) th.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  const place = new Map(order.map((id, i) => [id, i]));
  const byName = (a, b) => place.get(a.id) - place.get(b.id);
  const now = rows();
  const values = slot === "name" ? null : new Map(now.map((row) => [row, value(row, slot)]));
  const wanted = [...now].sort((a, b) => {
    if (!values) return descending ? byName(b, a) : byName(a, b);
    const [x, y] = [values.get(a), values.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || byName(a, b);
    return (descending ? y - x : x - y) || byName(a, b);
  });
  if (wanted.some((row, i) => row !== now[i])) table.append(...wanted);
}

/** Hides rows that the filter or the paging excludes. */
function sift() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (element) => {
    const name = element.dataset.name.toLowerCase();
    return words.every((word) => name.includes(word));
  };
  let found = 0;
  for (const card of document.querySelectorAll(".card")) {
    card.hidden = !fits(card);
    found += !card.hidden;
  }
  pageCards();
  let shown = 0;
  let left = 0;
  const limit = all || table.tBodies.length <= MANY ? Infinity : PAGE;
  for (const row of rows()) {
    const fit = fits(row);
    found += fit;
    row.hidden = !fit || shown >= limit;
    left += fit && row.hidden;
    shown += !row.hidden;
  }
  more.hidden = left === 0;
  more.textContent = `Show all ${shown + left} queues`;
  table.hidden = table.tBodies.length === 0;
  document.getElementById("no-match").hidden = words.length === 0 || found > 0;
}

/** On a phone, shows the first lines and a "more" button. */
function pageCards() {
  const lines = [...document.querySelectorAll(".card.line:not([hidden])")];
  const short = narrow.matches && !allCards && lines.length > LINES;
  lines.forEach((line, i) => (line.hidden = short && i >= LINES));
  moreCards.hidden = !short;
  moreCards.textContent = `Show ${lines.length - LINES} more`;
}

/** Sorts after an update, but keeps the order while the pointer is over the table. */
export function settle({ lists } = {}) {
  const given = lists?.["queue-rows"];
  order = given ?? order;
  if (given) arrange();
  else if (table.matches(":hover") || table.contains(document.activeElement)) stirred = true;
  else arrange();
  sift();
  feedMore.hidden = feed.children.length <= EVENTS || !("paged" in feed.dataset);
  feedMore.textContent = `Show all ${feed.children.length} events`;
}

export function focusFilter() {
  input.focus();
  input.select();
}

/** Esc: clears the filter, then removes the focus. */
export function clearFilter() {
  if (input.value) {
    input.value = "";
    remember();
    sift();
  }
  document.activeElement?.blur?.();
}

function remember() {
  const address = new URL(location.href);
  if (input.value) address.searchParams.set("q", input.value);
  else address.searchParams.delete("q");
  history.replaceState(null, "", address);
}

export function startTable() {
  input.form.hidden = false;
  input.value = new URL(location.href).searchParams.get("q") ?? "";
  input.form.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", () => {
    remember();
    sift();
  });
  for (const th of table.tHead.rows[0].cells) {
    th.querySelector("button").addEventListener("click", () => {
      const { sort: slot } = th.dataset;
      // Numbers sort descending first, names ascending; the third click restores the default.
      const steps = slot === "name" ? ["name", "-name", null] : [`-${slot}`, slot, null];
      sort = steps[(steps.indexOf(sort) + 1) % 3];
      kept.set("sort", sort);
      arrange();
      sift();
    });
  }
  table.addEventListener("pointerleave", () => {
    if (stirred) {
      stirred = false;
      arrange();
      sift();
    }
  });
  more.addEventListener("click", () => {
    all = true;
    sift();
  });
  feedMore.addEventListener("click", () => {
    delete feed.dataset.paged;
    feedMore.hidden = true;
  });
  moreCards.addEventListener("click", () => {
    allCards = true;
    sift();
  });
  narrow.addEventListener("change", sift);
  feed.dataset.paged = "";
  order = rows().map((row) => row.id);
  arrange();
  settle();
}
